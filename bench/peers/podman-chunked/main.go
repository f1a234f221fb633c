// podman-chunked makes a layer of zstd:chunked in the dialect of podman, buildah and skopeo: a tar on standard input, the
// blob on standard output, and on standard error, as JSON, the annotations that its descriptor must carry.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"

	"go.podman.io/storage/pkg/chunked/compressor"
)

var level = flag.Int("level", 3, "zstd level")

func main() {
	flag.Parse()
	annotations := make(map[string]string)
	if err := run(annotations); err != nil {
		fmt.Fprintln(os.Stderr, "podman-chunked:", err)
		os.Exit(1)
	}
	if err := json.NewEncoder(os.Stderr).Encode(annotations); err != nil {
		os.Exit(1)
	}
}

func run(annotations map[string]string) error {
	writer, err := compressor.ZstdCompressor(os.Stdout, annotations, level)
	if err != nil {
		return err
	}
	if _, err := io.Copy(writer, os.Stdin); err != nil {
		return err
	}
	return writer.Close()
}
