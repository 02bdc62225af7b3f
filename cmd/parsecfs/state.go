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
	return group("state", "Back up and restore the keys, and choose what wraps the key that seals them",
		stateBackupCommand(), stateRestoreCommand(), stateRewrapCommand(), stateAcceptLossCommand())
}

func stateBackupCommand() *cobra.Command {
	var flags stateFlags
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a consistent copy of the state to a new FILE, or to stdout (-); the daemon can be running",
		Long: `Write a consistent copy of the state to a new FILE, or to stdout (-). The daemon can be running meanwhile.
The copy contains the wrapping key, and therefore every secret in the key store: guard it as you guard the keys.`,
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

// writeNew creates a file with mode 0600, and syncs it to the disk. It never replaces a file. If it fails, it removes the file.
func writeNew(name string, write func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return &fs.Error{Kind: fs.KindOther, Err: fmt.Errorf("%s exists already", name),
			Hint: "a backup never replaces a file: choose another name"}
	}
	if err != nil {
		return err
	}
	if err := errors.Join(writeSynced(f, write), f.Close()); err != nil {
		os.Remove(name)
		return firstError(err)
	}
	return nil
}

func writeSynced(f *os.File, write func(io.Writer) error) error {
	if err := write(f); err != nil {
		return err
	}
	return f.Sync()
}

// firstError unwraps a join of one error, so that it is printed with its hint.
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
		Short: "Wrap the key that seals all others with another wrapping key: in a file, or in a TPM; the daemon can be running",
		Long: `Wrap the key that seals all others with another wrapping key: a new one in the file wrapping.key of the state directory,
or one that never leaves the TPM of a configured provider. If this command is killed, no key is lost: run it again. The
daemon can be running meanwhile, and goes on serving.

A TPM can break, be cleared or be replaced. That is what the recovery key is for, which you keep in a file elsewhere. If
FILE does not exist, a new recovery key is written to it; you need one before a TPM wraps for the first time. If FILE
exists, it opens the store when the TPM is lost. Whoever has it, and the state directory or a backup, has the keys.

With --pcrs the TPM unwraps only while these registers have their present values: after a firmware update, or with
another boot order, only the recovery key opens the store. Without --pcrs, wrapping_pcrs in the configuration decides,
or else the registers stay as they were.

If the configuration has wrapping_pin_source, the TPM unwraps only with the PIN that is there now; otherwise it needs no PIN.

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
					return &fs.Error{Kind: fs.KindUsage, Err: err, Hint: "for example --pcrs 0,7, or --pcrs '' for none"}
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
	cmd.Flags().BoolVar(&newKey, "new-data-key", false, "seal all secrets again, with a new key")
	cmd.Flags().StringVar(&recovery, "recovery-key", "", "`FILE` of the recovery key: an existing one, or a new one to write")
	cmd.Flags().StringVar(&registers, "pcrs", "", "TPM `REGISTERS` (PCRs) to bind the wrapping to, separated by commas")
	return cmd
}

func stateAcceptLossCommand() *cobra.Command {
	var flags stateFlags
	cmd := &cobra.Command{
		Use:   "accept-loss",
		Short: "Accept a state that is older than its TPM says, after you restored a backup; the daemon can be running",
		Long: `Accept a state that is older than its TPM says. A TPM that wraps the key that seals all others also counts the starts,
and some of the changes between them. So parsecfs notices when somebody puts back an older copy of the state, and then
none of its keys works. If you restored a backup yourself, this command accepts it. Keys that were destroyed since the
backup, and rights that were taken away since, are back then.`,
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
			return nil, fmt.Errorf("%q is not the number of a register", field)
		}
		list = append(list, n)
	}
	pcrs, err := psa.NewPCRs(list)
	return &pcrs, err
}
