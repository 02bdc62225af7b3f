package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parsecfs/parsecfs/fs"
	"github.com/parsecfs/parsecfs/providers/psa"
)

func stateCommand() *cobra.Command {
	return group("state", "Back up and restore keys, and say what wraps the key that seals them",
		stateBackupCommand(), stateRestoreCommand(), stateRewrapCommand(), stateAcceptLossCommand())
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

func stateRewrapCommand() *cobra.Command {
	var flags stateFlags
	var recovery, registers string
	var newKey bool
	cmd := &cobra.Command{
		Use:   "rewrap [--new-data-key] [--recovery-key FILE] [--pcrs 0,7] file|tpm:PROVIDER",
		Short: "Wrap the key that seals all others by another wrapping key: a file's, or a TPM's; the daemon may run",
		Long: `Wrap the key that seals all others by another wrapping key: a new one in the file wrapping.key of the state directory,
or one that the TPM of a configured provider never gives away. No key is lost, whenever it is killed: run it again. The
daemon may run meanwhile, and serves on.

A TPM may die, be cleared or be exchanged. So there is a recovery key, in a file that you keep elsewhere: it is made in
FILE where that does not exist, and is needed before a TPM wraps for the first time. A FILE that exists opens the
store where its TPM is lost; whoever has it and the state directory, or a backup, has the keys.

With --pcrs a TPM unwraps only while these registers are as they are now: after new firmware, or another boot
order, only the recovery key opens the store. Without it, wrapping_pcrs of the configuration count, or what was before.

With wrapping_pin_source in the configuration a TPM unwraps only with the PIN that is there now, and without it with none.

Old backups stay as they are, each with the wrapping key of its time, and with it open what is sealed by the same key
now. With --new-data-key all is sealed anew, by a key that no backup of before has; so it is done always where a TPM
takes the place of a file. The recovery key must be given then, the one that you keep or a new one: it opens the new key.
Keys that are in use go on meanwhile; those that are not wait.`,
		DisableFlagsInUseLine: true,
		Args:                  positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, stateDir, err := flags.load(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			kind := args[0]
			var pcrs *psa.PCRs
			if config.Wrapping.Kind == kind {
				pcrs = config.Wrapping.PCRs
			}
			if cmd.Flags().Changed("pcrs") {
				if pcrs, err = parsePCRs(registers); err != nil {
					return &fs.Error{Kind: fs.KindUsage, Err: err, Hint: "--pcrs 0,7; --pcrs '' for none"}
				}
			}
			o := fs.StateOptions{Config: config, StateDir: stateDir, Log: slog.New(slog.DiscardHandler), Step: testOnlyStep}
			made, err := fs.Rewrap(cmd.Context(), o, fs.Rewrapping{Kind: kind, PCRs: pcrs, RecoveryFile: recovery, NewDataKey: newKey})
			if err == nil && made {
				fmt.Fprintf(cmd.ErrOrStderr(), "parsecfs: the recovery key is in %s: keep it away from this machine\n", recovery)
			}
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&newKey, "new-data-key", false, "seal all secrets anew by a new key")
	cmd.Flags().StringVar(&recovery, "recovery-key", "", "the recovery key's `FILE`: a new one, or one that exists")
	cmd.Flags().StringVar(&registers, "pcrs", "", "the TPM's `REGISTERS` to bind it to, separated by commas")
	return cmd
}

func stateAcceptLossCommand() *cobra.Command {
	var flags stateFlags
	cmd := &cobra.Command{
		Use:   "accept-loss",
		Short: "Take a state that is older than its TPM says as it is, after a backup was restored; the daemon may run",
		Long: `Take a state that is older than its TPM says as it is. Where a TPM wraps the key that seals all others it counts the
starts, and some of the changes between them: a state that was put back from an older copy is noticed, and none of its
keys works. After you restored a backup yourself this command takes it: keys that were destroyed since, and rights that
were taken away, are back.`,
		Args: positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, stateDir, err := flags.load(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return fs.AcceptLoss(cmd.Context(), fs.StateOptions{Config: config, StateDir: stateDir, Log: slog.New(slog.DiscardHandler)})
		},
	}
	flags.add(cmd)
	return cmd
}

// parsePCRs reads registers' numbers, separated by commas.
func parsePCRs(text string) (*psa.PCRs, error) {
	var list []int
	for field := range strings.SplitSeq(text, ",") {
		if text == "" {
			break
		}
		n, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("no register %q", field)
		}
		list = append(list, n)
	}
	pcrs, err := psa.NewPCRs(list)
	return &pcrs, err
}
