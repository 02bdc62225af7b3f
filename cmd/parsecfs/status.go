package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/parsecfs/parsecfs/fs"
)

func statusCommand() *cobra.Command {
	var flags stateFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show where the tree is mounted, how requests come, and how the providers are; exit status 0 only where all is ready",
		Long: "Show where the tree is mounted, how requests come (uring or device), and how the providers are, a line each, in columns\n" +
			"separated by tabs. The exit status is 0 only where all is ready.",
		Args: positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			o, err := flags.options(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			s, err := fs.GetStatus(o)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				err = json.NewEncoder(out).Encode(s)
			} else {
				_, err = fmt.Fprintf(out, "mountpoint\t%s\ntransport\t%s\n", orNone(s.Mountpoint), orNone(string(s.Transport)))
				for _, p := range s.Providers {
					if err == nil {
						_, err = fmt.Fprintf(out, "provider\t%s\t%s\n", p.Name, strings.ReplaceAll(p.Status, "\n", "; "))
					}
				}
			}
			if err == nil && !s.Ready() {
				err = &fs.Error{Kind: fs.KindOther, Err: errors.New("not all is ready"), Hint: "the providers' status files and the log say more"}
			}
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
