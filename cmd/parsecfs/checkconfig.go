package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/parsecfs/parsecfs/fs"
)

func checkConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check-config FILE",
		Short: "Check a configuration file",
		Long: `Check a configuration file. Each mistake is reported with its line and with what is allowed there. Settings of
Parsec that mean nothing here are reported as warnings.

  [core_settings]  log_level, allow_deprecated, body_len_limit, operation_timeout, generate_timeout, default_provider,
                   keys_per_user, transactions_per_user, buffer_per_user, draft_expiry ("0s": never),
                   wrapping = "file"|"tpm:PROVIDER", wrapping_pcrs
  [mount]          path, dropbox = "lineage"|"off", attr_timeout (at most 1s), transport = "auto"|"uring"|"device"
  [audit]          max_bytes, keep, keep_for, operations_max_bytes, operations_keep, when_full = "stop"|"drop"
  [authenticator]  auth_type = "UnixPeerCredentials", admins = [{ name = "1000" }]
                   auth_type = "SystemdUnit", rules = [{ provider, units }]
  [[key_manager]]  exactly one: name, manager_type = "SQLite", sqlite_db_path
  [[provider]]     name, provider_type, key_info_manager, owner, group, mode, capabilities (a file that limits it), and those of its type

Sizes are in bytes. Durations are strings like "30s" or "1m30s", or whole numbers of seconds. Modes are strings of octal digits.
Owners and groups are names or numbers. Paths are absolute.`,
		Args: positional(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, warnings, err := fs.LoadConfig(args[0], registry)
			printWarnings(cmd.ErrOrStderr(), warnings)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: ok, %d provider(s):", args[0], len(c.Providers))
			for _, p := range c.Providers {
				fmt.Fprintf(cmd.OutOrStdout(), " %s (%s)", p.Name, p.Type.Name)
			}
			fmt.Fprintln(cmd.OutOrStdout())
			return nil
		},
	}
}
