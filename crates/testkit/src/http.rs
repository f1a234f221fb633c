//! The few HTTP requests that a lab makes itself: one connection each, blocking, plain.
//!
//! Not a client for the product, and deliberately not the product's client: what is tested must not be tested by
//! itself.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// No answer of a lab takes longer.
const LIMIT: Duration = Duration::from_mins(1);

/// An answer, read to its end.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header fields in the order they came, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, or as much of it as came.
    pub body: Vec<u8>,
    /// Whether the body came as long as it was announced.
    pub complete: bool,
}

impl Response {
    /// The first header field of that (lower case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The answer, if it is one of success.
    pub fn success(self) -> Result<Self> {
        if !(200..300).contains(&self.status) {
            bail!("answered {}: {}", self.status, self.text());
        }
        Ok(self)
    }
}

/// `GET path` with the given header fields.
pub fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Response> {
    request(address, "GET", path, headers, &[])
}

/// One request on a connection of its own. `path` may also be an absolute URL, as one asks a forward proxy.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let doing = || format!("{method} {path} at {address}");
    let stream = TcpStream::connect_timeout(&address, LIMIT).with_context(doing)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        let _ = write!(head, "host: {address}\r\n");
    }
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head += "\r\n";
    (&stream).write_all(head.as_bytes()).with_context(doing)?;
    // A server may answer, and close, before it has read a body that it does not want.
    let written = (&stream).write_all(body);
    let response = read_response(&mut BufReader::new(&stream), method == "HEAD");
    match (response, written) {
        (Ok(response), _) => Ok(response),
        (Err(_), Err(error)) => Err(error).with_context(doing),
        (Err(error), Ok(())) => Err(error).with_context(doing),
    }
}

fn read_response(reader: &mut impl BufRead, headless: bool) -> Result<Response> {
    let (status, headers) = loop {
        let (status, headers) = read_head(reader)?;
        // 100 Continue and the like come before the answer.
        if status >= 200 {
            break (status, headers);
        }
    };
    let mut response = Response { status, headers, body: Vec::new(), complete: true };
    if headless || status == 204 || status == 304 {
        return Ok(response);
    }
    if response.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        response.complete = read_chunks(reader, &mut response.body).is_ok();
        return Ok(response);
    }
    let announced = response.header("content-length").map(str::parse::<u64>).transpose()?;
    let read = reader.take(announced.unwrap_or(u64::MAX)).read_to_end(&mut response.body);
    response.complete = read.is_ok() && announced.is_none_or(|len| len == response.body.len() as u64);
    Ok(response)
}

fn read_head(reader: &mut impl BufRead) -> Result<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        bail!("the connection was closed without an answer");
    }
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("not an HTTP answer")?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            bail!("the connection was closed inside the header");
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => return Ok((status, headers)),
        }
    }
}

fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let len = u64::from_str_radix(line.trim_end().split(';').next().unwrap_or_default(), 16)?;
        let before = body.len() as u64;
        reader.take(len).read_to_end(body)?;
        if body.len() as u64 - before < len {
            bail!("cut inside a chunk");
        }
        line.clear();
        reader.read_line(&mut line)?;
        if len == 0 {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Response {
        read_response(&mut text.as_bytes(), false).unwrap()
    }

    #[test]
    fn bodies_of_known_length_chunks_and_open_end() {
        assert_eq!(parse("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc").text(), "abc");
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).text(), "abc");
        assert_eq!(parse("HTTP/1.0 200 OK\r\n\r\nabc").text(), "abc");
    }

    #[test]
    fn a_cut_body_is_known_to_be_cut() {
        let response = parse("HTTP/1.1 206 Partial Content\r\nContent-Length: 9\r\n\r\nabc");
        assert_eq!((response.status, response.text().as_str(), response.complete), (206, "abc", false));
        assert!(!parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab").complete);
        assert!(parse("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").complete);
    }
}
