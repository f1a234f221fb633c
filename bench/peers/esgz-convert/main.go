// esgz-convert is upstream's newest converter as a program: stargz-snapshotter's nativeconverter under containerd's own
// converter, on the content store of a running containerd. Debian's ctr-remote (0.12) lacks several of these flags.
//
//	esgz-convert convert [flags] SRC DST     both are names of images in containerd
//	esgz-convert toc-digest DIGEST           what the reader of upstream computes from a blob in containerd's store
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	esgzconvert "github.com/containerd/stargz-snapshotter/nativeconverter/estargz"
	"github.com/containerd/stargz-snapshotter/nativeconverter/estargz/externaltoc"
	zstdconvert "github.com/containerd/stargz-snapshotter/nativeconverter/zstdchunked"
	"github.com/containerd/stargz-snapshotter/recorder"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	address      = flag.String("address", "/run/containerd/containerd.sock", "containerd's socket")
	namespace    = flag.String("namespace", "default", "containerd's namespace")
	level        = flag.Int("level", 0, "compression level (0: 9 for gzip, 3 for zstd)")
	chunkSize    = flag.Int("chunk-size", 0, "bytes of a file per chunk (0: 4 MiB)")
	minChunkSize = flag.Int("min-chunk-size", 0, "compressed bytes that a gzip member holds at least")
	externalTOC  = flag.Bool("external-toc", false, "keep the TOCs in an image of their own, DST-esgztoc")
	keepDiffID   = flag.Bool("keep-diff-id", false, "keep the tar as it is (with -external-toc)")
	zstdChunked  = flag.Bool("zstdchunked", false, "zstd:chunked instead of eStargz")
	recordIn     = flag.String("record-in", "", "record of accessed files, as ctr-remote optimize writes it")
	parallelism  = flag.Int("parallelism", 0, "workers (0: one per core; decides where members end)")
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "esgz-convert:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) < 2 {
		return errors.New("usage: esgz-convert convert|toc-digest [flags] …")
	}
	command := os.Args[1]
	if err := flag.CommandLine.Parse(os.Args[2:]); err != nil {
		return err
	}
	client, err := containerd.New(*address)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx := namespaces.WithNamespace(context.Background(), *namespace)
	switch {
	case command == "convert" && flag.NArg() == 2:
		return convert(ctx, client, flag.Arg(0), flag.Arg(1))
	case command == "toc-digest" && flag.NArg() == 1:
		return tocDigest(ctx, client, flag.Arg(0))
	}
	return fmt.Errorf("%s: unknown, or a wrong number of arguments", command)
}

func convert(ctx context.Context, client *containerd.Client, src, dst string) error {
	ctx, done, err := client.WithLease(ctx)
	if err != nil {
		return err
	}
	defer done(ctx)
	layers, finish, err := layerConverter(ctx, client, src)
	if err != nil {
		return err
	}
	image, err := converter.Convert(ctx, client, dst, src,
		converter.WithLayerConvertFunc(layers),
		converter.WithDockerToOCI(true),
		converter.WithPlatform(platforms.DefaultStrict()))
	if err != nil {
		return err
	}
	fmt.Println(image.Target.Digest)
	if finish == nil {
		return nil
	}
	toc, err := finish(ctx, client.ContentStore(), dst, &image.Target)
	if err != nil {
		return err
	}
	if err := client.ImageService().Delete(ctx, toc.Name); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if _, err := client.ImageService().Create(ctx, *toc); err != nil {
		return err
	}
	fmt.Println(toc.Name, toc.Target.Digest)
	return nil
}

type finisher func(context.Context, content.Store, string, *ocispec.Descriptor) (*images.Image, error)

func layerConverter(ctx context.Context, client *containerd.Client, src string) (converter.ConvertFunc, finisher, error) {
	opts := []estargz.Option{estargz.WithChunkSize(*chunkSize), estargz.WithMinChunkSize(*minChunkSize)}
	if *parallelism > 0 {
		opts = append(opts, estargz.WithParallelism(*parallelism))
	}
	perLayer, err := prioritized(ctx, client, src)
	if err != nil {
		return nil, nil, err
	}
	gzipLevel := *level
	if gzipLevel == 0 {
		gzipLevel = 9
	}
	switch {
	case *zstdChunked:
		all, err := perLayerOptions(ctx, client, src, opts, perLayer)
		if err != nil {
			return nil, nil, err
		}
		encoder := zstd.SpeedDefault
		if *level > 0 {
			encoder = zstd.EncoderLevelFromZstd(*level)
		}
		return zstdconvert.LayerConvertWithLayerOptsFuncWithCompressionLevel(encoder, all), nil, nil
	case *externalTOC && *keepDiffID:
		convert, finish := externaltoc.LayerConvertLossLessFunc(externaltoc.LayerConvertLossLessConfig{
			CompressionLevel: gzipLevel, ChunkSize: *chunkSize, MinChunkSize: *minChunkSize,
		})
		return convert, finish, nil
	case *externalTOC:
		convert, finish := externaltoc.LayerConvertWithLayerAndCommonOptsFunc(perLayer, opts, gzipLevel)
		return convert, finish, nil
	}
	opts = append(opts, estargz.WithCompressionLevel(gzipLevel))
	return esgzconvert.LayerConvertWithLayerAndCommonOptsFunc(perLayer, opts...), nil, nil
}

// What the zstd converter takes are options by layer only.
func perLayerOptions(ctx context.Context, client *containerd.Client, src string, common []estargz.Option, special map[digest.Digest][]estargz.Option) (map[digest.Digest][]estargz.Option, error) {
	manifest, err := manifestOf(ctx, client, src)
	if err != nil {
		return nil, err
	}
	all := make(map[digest.Digest][]estargz.Option)
	for _, layer := range manifest.Layers {
		all[layer.Digest] = append(append([]estargz.Option{}, common...), special[layer.Digest]...)
	}
	return all, nil
}

// The files of the record, by layer, in the order in which they were accessed.
func prioritized(ctx context.Context, client *containerd.Client, src string) (map[digest.Digest][]estargz.Option, error) {
	if *recordIn == "" {
		return nil, nil
	}
	manifest, err := manifestOf(ctx, client, src)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(*recordIn)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	paths := make(map[digest.Digest][]string)
	for records := json.NewDecoder(file); ; {
		var entry recorder.Entry
		if err := records.Decode(&entry); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		if entry.LayerIndex == nil || *entry.LayerIndex < 0 || *entry.LayerIndex >= len(manifest.Layers) {
			continue
		}
		layer := manifest.Layers[*entry.LayerIndex].Digest
		paths[layer] = append(paths[layer], entry.Path)
	}
	options := make(map[digest.Digest][]estargz.Option)
	for _, layer := range manifest.Layers {
		var missed []string
		options[layer.Digest] = []estargz.Option{
			estargz.WithPrioritizedFiles(paths[layer.Digest]), estargz.WithAllowPrioritizeNotFound(&missed),
		}
	}
	return options, nil
}

func manifestOf(ctx context.Context, client *containerd.Client, name string) (*ocispec.Manifest, error) {
	image, err := client.ImageService().Get(ctx, name)
	if err != nil {
		return nil, err
	}
	manifest, err := images.Manifest(ctx, client.ContentStore(), image.Target, platforms.DefaultStrict())
	return &manifest, err
}

func tocDigest(ctx context.Context, client *containerd.Client, name string) error {
	dgst, err := digest.Parse(name)
	if err != nil {
		return err
	}
	blob, err := client.ContentStore().ReaderAt(ctx, ocispec.Descriptor{Digest: dgst})
	if err != nil {
		return err
	}
	defer blob.Close()
	reader, err := estargz.Open(io.NewSectionReader(blob, 0, blob.Size()), estargz.WithDecompressors(new(zstdchunked.Decompressor)))
	if err != nil {
		return err
	}
	fmt.Println(reader.TOCDigest())
	return nil
}
