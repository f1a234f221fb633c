// stargz-snapshotter is upstream's containerd-stargz-grpc: its library, 0.19.1, behind containerd's snapshots API on a Unix
// socket. The module of upstream's own command is not served by the module proxy; this is what that command does with the
// default metadata store and Docker's credentials.
//
//	stargz-snapshotter -address SOCK -root DIR [-config FILE]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/service"
	"github.com/containerd/stargz-snapshotter/service/keychain/dockerconfig"
	"github.com/pelletier/go-toml"
	"google.golang.org/grpc"
)

var (
	address = flag.String("address", "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock", "socket to listen on")
	root    = flag.String("root", "/var/lib/containerd-stargz-grpc", "where everything is kept")
	file    = flag.String("config", "", "upstream's config.toml (none: the defaults)")
)

func main() {
	flag.Parse()
	if err := log.SetLevel("warn"); err != nil {
		fatal(err)
	}
	if err := run(); err != nil {
		fatal(err)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "stargz-snapshotter:", err)
	os.Exit(1)
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	config, err := load(*file)
	if err != nil {
		return err
	}
	credentials := service.WithCredsFuncs(dockerconfig.NewDockerconfigKeychain(ctx))
	snapshotter, err := service.NewStargzSnapshotterService(ctx, *root, config, credentials)
	if err != nil {
		return err
	}
	if err := os.Remove(*address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", *address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
	case <-ctx.Done():
		server.Stop()
	}
	return errors.Join(err, snapshotter.Close())
}

// Some defaults stand in tags, which this TOML library, upstream's own, follows also where the file says nothing.
func load(path string) (*service.Config, error) {
	text := []byte{}
	if path != "" {
		var err error
		if text, err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	config := new(service.Config)
	if err := toml.Unmarshal(text, config); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return config, nil
}
