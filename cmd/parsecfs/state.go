package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/parsecfs/parsecfs/fs"
)

func stateCommand() *cobra.Command {
	return group("state", "Back up and restore keys", stateBackupCommand(), stateRestoreCommand())
}

func stateBackupCommand() *cobra.Command {
	var flags stateFlags
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a consistent copy of the state to a new FILE, or to stdout (-); the daemon may run",
		Long: `Write a consistent copy of the state to a new FILE, or to stdout (-). The daemon may run meanwhile.
The copy holds the wrapping key and so every secret that the KIM keeps: guard it as you guard the keys.`,
		Args: positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, stateDir, err := flags.load(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			o := fs.StateOptions{Config: config, StateDir: stateDir, Log: slog.New(slog.DiscardHandler)}
			if args[0] == "-" {
				return fs.Backup(cmd.Context(), o, cmd.OutOrStdout())
			}
			return writeNew(args[0], func(w io.Writer) error { return fs.Backup(cmd.Context(), o, w) })
		},
	}
	flags.add(cmd)
	return cmd
}

// writeNew makes a file that did not exist, 0600 and on the disk before it returns; on failure there is none.
func writeNew(name string, write func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return &fs.Error{Kind: fs.KindOther, Err: fmt.Errorf("%s exists already", name), Hint: "a backup never replaces a file: give another name"}
	}
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err != nil {
		os.Remove(name)
		return firstError(err)
	}
	return nil
}

// firstError undoes a join of one error, so that it is printed with its hint.
func firstError(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok && len(joined.Unwrap()) == 1 {
		return joined.Unwrap()[0]
	}
	return err
}

func stateRestoreCommand() *cobra.Command {
	var flags stateFlags
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Unpack a backup, or stdin (-), into a state directory that holds no keys",
		Args:  positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, stateDir, err := flags.load(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			in := cmd.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			return fs.Restore(cmd.Context(), fs.StateOptions{Config: config, StateDir: stateDir}, in)
		},
	}
	flags.add(cmd)
	return cmd
}
