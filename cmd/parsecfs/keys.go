package main

import (
	"bufio"
	"fmt"
	"log/slog"
	"os/user"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/parsecfs/parsecfs/fs"
)

func keysCommand() *cobra.Command {
	return group("keys", "Look at keys", keysListCommand())
}

func keysListCommand() *cobra.Command {
	var flags stateFlags
	var provider string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List keys: provider, name, state, template, owner and uuid, separated by tabs",
		Args:  positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, stateDir, err := flags.load(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			owners := map[uint32]string{}
			o := fs.StateOptions{Config: config, StateDir: stateDir, Log: slog.New(slog.DiscardHandler)}
			err = fs.ListKeys(cmd.Context(), o, provider, func(k fs.KeyInfo) error {
				if _, ok := owners[k.UID]; !ok {
					owners[k.UID] = userName(k.UID)
				}
				_, err := fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\n", k.Provider, k.Name, k.State, k.Template, owners[k.UID], k.UUID)
				return err
			})
			if err != nil {
				return err
			}
			return out.Flush()
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&provider, "provider", "", "list the keys of the provider `NAME` alone")
	return cmd
}

// userName is the name of a uid, or its number where it has none.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
