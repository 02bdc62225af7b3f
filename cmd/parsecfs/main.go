// Command parsecfs mounts keys as files. See parsecfs help.
package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/parsecfs/parsecfs/fs"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/pkcs11"
	"github.com/parsecfs/parsecfs/providers/software"
	"github.com/parsecfs/parsecfs/providers/tpm"
)

// registry lists the back ends that this program is built with.
var registry = providers.Registry{software.Type, tpm.Type, pkcs11.Type}

// testOnlyTransport stands where nobody chose how requests come; it is empty in the program.
var testOnlyTransport fs.Transport

// testOnlyStep is called at each step of the journal where a test ends the daemon; it is nil in the program.
var testOnlyStep func(step string)

// Exit statuses. A number never gets another meaning. 2 is unused, because a Go panic exits with it.
const (
	exitOK         = 0
	exitFailure    = 1
	exitUsage      = 3
	exitConfig     = 4
	exitMountpoint = 5
	exitFUSE       = 6
	exitState      = 7
)

var exitCodes = map[fs.Kind]int{
	fs.KindOther:      exitFailure,
	fs.KindUsage:      exitUsage,
	fs.KindConfig:     exitConfig,
	fs.KindMountpoint: exitMountpoint,
	fs.KindFUSE:       exitFUSE,
	fs.KindState:      exitState,
}

func main() {
	pkcs11.WorkerMain()
	ready, err := inheritReady()
	if err != nil {
		fail(err, nil)
	}
	if err := run(os.Args, ready); err != nil {
		fail(err, ready)
	}
	os.Exit(exitOK)
}

// fail reports an error and exits.
func fail(err error, ready *readyPipe) {
	printError(os.Stderr, err)
	ready.fail(err)
	os.Exit(exitCode(os.Args, err))
}

// run runs the command line argv, whose first word is the program's name.
func run(argv []string, ready *readyPipe) error {
	args := argv[1:]
	if translated, ok, err := mountHelper(argv); err != nil {
		return err
	} else if ok {
		args = translated
	}
	root := rootCommand(ready)
	root.SetArgs(args)
	return root.Execute()
}

func rootCommand(ready *readyPipe) *cobra.Command {
	root := &cobra.Command{
		Use:           "parsecfs",
		Short:         "Keys as files: every key is a directory, every operation is a file",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          positional(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &fs.Error{Kind: fs.KindUsage, Err: err, Hint: cmd.CommandPath() + " --help"}
	})
	root.AddCommand(mountCommand(ready), unmountCommand(), checkConfigCommand(), keysCommand(), providerCommand(), stateCommand(), statusCommand(),
		versionCommand())
	return root
}

// positional reports a wrong number of arguments as a usage error, with the right command line as its hint.
func positional(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			hint := cmd.UseLine()
			if cmd.HasSubCommands() {
				hint = cmd.CommandPath() + " --help"
			}
			return &fs.Error{Kind: fs.KindUsage, Err: err, Hint: hint}
		}
		return nil
	}
}

// group is a command that only has subcommands.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: positional(cobra.NoArgs), RunE: func(cmd *cobra.Command, _ []string) error {
		return cmd.Help()
	}}
	c.AddCommand(commands...)
	return c
}

// printError writes a line for each failure, and a hint line if the user can do something about it.
func printError(w io.Writer, err error) {
	e, ok := errors.AsType[*fs.Error](err)
	if !ok {
		fmt.Fprintf(w, "parsecfs: %v\n", err)
		return
	}
	if joined, ok := e.Err.(interface{ Unwrap() []error }); ok {
		for _, one := range joined.Unwrap() {
			fmt.Fprintf(w, "parsecfs: %v\n", one)
			if p, ok := errors.AsType[*fs.Problem](one); ok && p.Hint != "" {
				fmt.Fprintf(w, "hint: %s\n", p.Hint)
			}
		}
	} else {
		fmt.Fprintf(w, "parsecfs: %v\n", err)
	}
	if e.Hint != "" {
		fmt.Fprintf(w, "hint: %s\n", e.Hint)
	}
}

// printWarnings writes which of a configuration's settings mean nothing here.
func printWarnings(w io.Writer, warnings []*fs.Problem) {
	for _, p := range warnings {
		fmt.Fprintf(w, "parsecfs: warning: %v: %s\n", p, p.Hint)
	}
}

// exitCode is the exit status for an error. Helpers of mount(8) have their own numbers.
func exitCode(argv []string, err error) int {
	kind := fs.KindOther
	if e, ok := errors.AsType[*fs.Error](err); ok {
		kind = e.Kind
	}
	if isMountHelper(argv) {
		if kind == fs.KindUsage {
			return 1
		}
		return 32
	}
	return exitCodes[kind]
}

// stateFlags are the flags of each command that needs the state.
type stateFlags struct{ config, stateDir string }

func (f *stateFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.config, "config", "", "configuration `FILE` (default: one provider, in software)")
	cmd.Flags().StringVar(&f.stateDir, "state-dir", "", "`DIR` that keeps keys and sockets (default: /var/lib/parsecfs for root, $XDG_STATE_HOME/parsecfs for others)")
}

// load reads the configuration, writes its warnings to w, and makes the state directory's path absolute.
func (f *stateFlags) load(w io.Writer) (c *fs.Config, stateDir string, err error) {
	if f.config == "" {
		c, err = fs.DefaultConfig(registry)
	} else {
		var warnings []*fs.Problem
		c, warnings, err = fs.LoadConfig(f.config, registry)
		printWarnings(w, warnings)
	}
	if err != nil {
		return nil, "", err
	}
	stateDir = f.stateDir
	if stateDir == "" {
		if stateDir, err = fs.DefaultStateDir(); err != nil {
			return nil, "", err
		}
	}
	stateDir, err = filepath.Abs(stateDir)
	return c, stateDir, err
}

// options are for commands that use the state and log nothing.
func (f *stateFlags) options(w io.Writer) (fs.StateOptions, error) {
	config, stateDir, err := f.load(w)
	return fs.StateOptions{Config: config, StateDir: stateDir, Log: slog.New(slog.DiscardHandler)}, err
}
