// Package suite runs containerd's own suite for snapshotters, 21 cases, over the real socket of a real process of
// `pantala snapshotter`, one for each case.
//
//	PANTALA_BIN=target/debug/pantala snapshotter-suite -test.v -test.root
package suite

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestSuite(t *testing.T) {
	binary := os.Getenv("PANTALA_BIN")
	if binary == "" {
		t.Skip("PANTALA_BIN names no binary")
	}
	start := func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		return launch(binary, root)
	}
	// By this name the suite knows that directories of lower layers cannot be renamed, as everywhere on overlayfs.
	testsuite.SnapshotterSuite(t, "overlayfs", start)
}

func launch(binary, root string) (snapshots.Snapshotter, func() error, error) {
	socket := filepath.Join(root, "s.sock")
	config := filepath.Join(root, "config.toml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		return nil, nil, err
	}
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	command := exec.Command(binary, "snapshotter", "--address", socket, "--root", filepath.Join(root, "r"), "--config", config)
	command.Stdout, command.Stderr = log, log
	if err := command.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() error {
		_ = command.Process.Signal(syscall.SIGTERM)
		return command.Wait()
	}
	if err := listens(socket); err != nil {
		text, _ := os.ReadFile(log.Name())
		return nil, nil, fmt.Errorf("%w; %w; %s", err, stop(), text)
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	snapshotter := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "pantala")
	return snapshotter, func() error { _ = connection.Close(); return stop() }, nil
}

func listens(socket string) error {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		connection, err := net.Dial("unix", socket)
		if err == nil {
			return connection.Close()
		}
		if time.Now().After(end) {
			return err
		}
	}
}
