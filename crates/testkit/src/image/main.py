"""A small real program: a web server with a database, asked once by itself."""

import http.client
import http.server
import json
import pathlib
import sqlite3
import threading

WORDS = json.loads(pathlib.Path(__file__).with_name("words.json").read_text())


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with sqlite3.connect(":memory:") as database:
            database.execute("create table words (word text, meaning text)")
            database.executemany("insert into words values (?, ?)", WORDS.items())
            rows = database.execute("select meaning from words where word = ?", (self.path[1:],)).fetchall()
        body = json.dumps({"word": self.path[1:], "meaning": rows[0][0], "sqlite": sqlite3.sqlite_version}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def main():
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = http.client.HTTPConnection(*server.server_address)
    client.request("GET", "/lazy")
    answer = json.loads(client.getresponse().read())
    print("pantala demo:", answer["meaning"], "- sqlite", answer["sqlite"])
    server.shutdown()


if __name__ == "__main__":
    main()
