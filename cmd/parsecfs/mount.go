package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/fs"
)

// spareThreads has Go run more at once than there are processors. All of these can be busy with cryptography, and a request that was
// just read from the kernel would then come last in the runtime's global queue, which is looked at once in 61 times: behind whatever
// one user has begun. With a place of its own the kernel's scheduler gives it its turn. Who sets GOMAXPROCS decides.
func spareThreads() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(3 * runtime.GOMAXPROCS(0))
	}
}

func mountCommand(ready *readyPipe) *cobra.Command {
	var flags stateFlags
	var inBackground bool
	var options []string
	cmd := &cobra.Command{
		Use:   "mount [--config FILE] [--state-dir DIR] [--background] [-o OPT,...] [MOUNTPOINT]",
		Short: "Mount the tree, and serve it until SIGTERM or SIGINT",
		Long: `Mount the tree, and serve it until SIGTERM or SIGINT. The daemon then finishes the requests that are running,
unmounts, and exits with status 0. On a second signal it does not wait for them. On SIGHUP it reads the configuration
again; a mount on a terminal, or without a configuration, ends as on SIGTERM. Without --config there is one provider,
in software, named "software", and the state directory holds everything. MOUNTPOINT can also be set in the
configuration. If an earlier daemon left a dead mount on MOUNTPOINT, it is detached first.

Options for -o, as in mount(8) and fstab(5):
` + optionsHelp(),
		DisableFlagsInUseLine: true,
		Args:                  positional(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var m mountSettings
			if err := m.parseOptions(options); err != nil {
				return err
			}
			if m.config != "" {
				flags.config = m.config
			}
			if m.stateDir != "" {
				flags.stateDir = m.stateDir
			}
			config, stateDir, err := flags.load(cmd.ErrOrStderr())
			if err == nil && flags.config != "" {
				// The daemon changes its working directory, and later reads the file again.
				flags.config, err = filepath.Abs(flags.config)
			}
			if err != nil {
				return err
			}
			if m.dropbox != nil {
				config.Mount.Dropbox = *m.dropbox
			}
			config.Mount.Transport = cmp.Or(m.transport, config.Mount.Transport, testOnlyTransport, fs.TransportAuto)
			dir := config.Mount.Path
			if len(args) == 1 {
				dir = args[0]
			}
			if dir == "" {
				return &fs.Error{Kind: fs.KindUsage, Err: errors.New("no mountpoint"), Hint: "run parsecfs mount MOUNTPOINT, or set path in [mount] of the configuration"}
			}
			if inBackground && ready == nil {
				return background(dir, cmd.ErrOrStderr())
			}
			mountpoint, err := fs.ResolveNewMountpoint(dir)
			if err != nil {
				return err
			}
			stop, reload := make(chan os.Signal, 2), make(chan os.Signal, 1)
			signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
			_, err = unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS)
			if onTerminal := err == nil; onTerminal || flags.config == "" {
				// A terminal that goes away must not leave a mount that nobody sees, nor must a reader of stderr that does.
				signal.Notify(stop, unix.SIGHUP)
			} else {
				signal.Notify(reload, unix.SIGHUP)
			}
			signal.Ignore(unix.SIGPIPE)
			spareThreads()
			return fs.Run(cmd.Context(), fs.MountOptions{
				Config:     config,
				StateDir:   stateDir,
				Mountpoint: mountpoint,
				NeedOthers: m.allowOther,
				Version:    version(),
				Log:        slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: config.Core.LogLevel})),
				Held:       func() error { return ready.log(stateDir) },
				Ready: func() {
					fmt.Fprintf(cmd.ErrOrStderr(), "parsecfs: mounted on %s\n", dir)
					ready.done()
				},
				Stop:   stop,
				Reload: reload,
				Load: func() (*fs.Config, error) {
					c, _, err := flags.load(cmd.ErrOrStderr())
					return c, err
				},
				Step: testOnlyStep,
			})
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&inBackground, "background", false,
		"return when the tree is mounted; the daemon logs to parsecfs.log in the state directory")
	cmd.Flags().StringArrayVarP(&options, "options", "o", nil, "mount `OPT`ions, separated by commas")
	return cmd
}
