package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"os/user"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/parsecfs/parsecfs/fs"
)

func keysCommand() *cobra.Command {
	return group("keys", "List keys, and manage the keys of users who left", keysListCommand(), keysChownCommand(), keysDestroyCommand(),
		keysForgetCommand(), keysForeignCommand())
}

func keysListCommand() *cobra.Command {
	var flags stateFlags
	var provider, owner string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List keys: provider, name, state, template, owner, uuid and time of creation, separated by tabs, below a header",
		Long: "List keys: provider, name, state, template, owner, uuid and time of creation, separated by tabs,\n" +
			"below a header. A name among a user's own is users/UID/NAME.",
		Args: positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := flags.options(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			var only *uint32
			if owner != "" {
				uid, _, err := userID(owner)
				if err != nil {
					return err
				}
				only = &uid
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			fmt.Fprintln(out, "# provider\tname\tstate\ttemplate\towner\tuuid\tcreated")
			show := showKeys(out)
			err = fs.ListKeys(cmd.Context(), o, provider, only, show)
			if err != nil {
				return err
			}
			return out.Flush()
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&provider, "provider", "", "list only the keys of provider `NAME`")
	cmd.Flags().StringVar(&owner, "owner", "", "list only the keys of `USER` (a name or a uid)")
	return cmd
}

// showKeys prints one line for each key.
func showKeys(out io.Writer) func(fs.KeyInfo) error {
	owners := map[uint32]string{}
	return func(k fs.KeyInfo) error {
		if _, ok := owners[k.UID]; !ok {
			owners[k.UID] = userName(k.UID)
		}
		created := ""
		if !k.Created.IsZero() { // a damaged row has no time
			created = k.Created.Format(time.RFC3339)
		}
		_, err := fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Provider, k.Name, k.State, orNone(k.Template), owners[k.UID], k.UUID,
			orNone(created))
		return err
	}
}

func keysChownCommand() *cobra.Command {
	var to uint32
	var toGroup uint32
	return ownedCommand("chown --owner USER NEW-USER",
		"Give all keys of a user, and the files they own in others' keys, to another user, and list them",
		positional(cobra.ExactArgs(1)),
		func(args []string) (err error) {
			to, toGroup, err = userID(args[0])
			return err
		},
		func(ctx context.Context, o fs.StateOptions, owner uint32, each func(fs.KeyInfo, error) error) error {
			return fs.ChownKeys(ctx, o, owner, to, toGroup, each)
		})
}

func keysDestroyCommand() *cobra.Command {
	return ownedCommand("destroy --owner USER", "Destroy all keys of a user, also on their devices, and list them",
		positional(cobra.NoArgs), func([]string) error { return nil }, fs.DestroyKeys)
}

func keysForgetCommand() *cobra.Command {
	var flags stateFlags
	cmd := &cobra.Command{
		Use:   "forget PROVIDER KEY",
		Short: "Remove a key from the key store and leave its device alone: for a device that never comes back",
		Long: "Remove a key from the key store and leave its device alone, for a device that never comes back. KEY is its name, or\n" +
			"users/UID/NAME.",
		Args: positional(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := flags.options(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			return fs.ForgetKey(cmd.Context(), o, args[0], args[1])
		},
	}
	flags.add(cmd)
	return cmd
}

func keysForeignCommand() *cobra.Command {
	var flags stateFlags
	var provider string
	cmd := &cobra.Command{
		Use:   "foreign",
		Short: "List all keys on the devices, also those that other programs made",
		Long: "List all keys on the devices, also those that other programs made. Each line has these columns, separated by tabs:\n" +
			"provider, object, label, key type, bits, the template that the key would get, and its name here if it has one.\n" +
			"To adopt a key where it is, write its object into a draft's import:\n\n    mkdir keys/web && echo id=0a1b > keys/web/import",
		Args: positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := flags.options(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			err = fs.ForeignKeys(cmd.Context(), o, provider, func(f fs.ForeignInfo) error {
				_, err := fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Provider, f.Object, oneLine(f.Label), orNone(f.Type),
					orNone(strings.TrimPrefix(strconv.Itoa(f.Bits), "0")), orNone(f.Template), orNone(f.Holder))
				return err
			})
			if err != nil {
				return err
			}
			return out.Flush()
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&provider, "provider", "", "list only the keys on the device of provider `NAME`")
	return cmd
}

// oneLine replaces what would break a line of columns or control a terminal in a device's text.
func oneLine(s string) string {
	return orNone(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s))
}

func orNone(s string) string { return cmp.Or(s, "-") }

// ownedCommand does something to all keys of one user. It reports each failure, goes on, and fails in the end.
func ownedCommand(use, short string, args cobra.PositionalArgs, parse func(args []string) error,
	run func(context.Context, fs.StateOptions, uint32, func(fs.KeyInfo, error) error) error) *cobra.Command {
	var flags stateFlags
	var owner string
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  args,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := flags.options(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			uid, _, err := userID(owner)
			if err != nil {
				return err
			}
			if err := parse(args); err != nil {
				return err
			}
			show := showKeys(cmd.OutOrStdout())
			failed := 0
			err = run(cmd.Context(), o, uid, func(k fs.KeyInfo, err error) error {
				if err == nil {
					return show(k)
				}
				failed++
				fmt.Fprintf(cmd.ErrOrStderr(), "parsecfs: %s/%s: %v\n", k.Provider, k.Name, err)
				return nil
			})
			if err == nil && failed > 0 {
				err = fmt.Errorf("%d keys failed", failed)
			}
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&owner, "owner", "", "whose keys: a name or a uid")
	cobra.CheckErr(cmd.MarkFlagRequired("owner"))
	return cmd
}

// userID is the uid of a name or number, and the user's primary group. A uid without an account has the gid of the same number.
func userID(name string) (uid, gid uint32, err error) {
	if u, err := user.Lookup(name); err == nil {
		name = u.Uid
	}
	id, err := strconv.ParseUint(name, 10, 32)
	if err != nil || id == 1<<32-1 {
		return 0, 0, fmt.Errorf("there is no user %q", name)
	}
	uid, gid = uint32(id), uint32(id)
	if u, err := user.LookupId(name); err == nil {
		if g, err := strconv.ParseUint(u.Gid, 10, 32); err == nil {
			gid = uint32(g)
		}
	}
	return uid, gid, nil
}

// userName is the name of a uid, or its number where it has none.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
