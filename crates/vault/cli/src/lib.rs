//! `alknet vault`: commands over a vault on the user's own computer.
//!
//! A [`OfflineVaultVerb`] is the command as clap reads it; [`run`] carries it out in a directory with the two copies
//! of the vault (`vault.a`, `vault.b`), `seed.key` if there is a provisioning slot, `audit` and `credentials`. Verbs
//! that only need the recovery words work without a directory.
//!
//! This crate uses no network, and the code of a node's own vault is elsewhere. A program with a network adds `lock`,
//! and asks nodes for their status ([`VaultStatusArgs::node`]). No program adds `unlock`: a machine asks for what
//! opens its vault at its console only.

mod args;
mod earlier;
mod error;
mod keys;
mod log;
mod new;
mod progress;
mod prompt;
mod recorder;
mod records;
mod slots;
mod vault_dir;
mod verbs;

use std::io::Write;

use serde_json::{Value, json};

pub use args::{
    AuditVerifyArgs, CostArgs, CurveArg, DeriveArgs, DirArgs, ExportKeyArgs, ImportArgs, InitArgs,
    KeyShowArgs, LogArgs, MigrateArgs, NewArgs, RecordArgs, RecoveryKeyArgs, RekeyArgs, RemoveArgs,
    SealArgs, SlotArg, SlotSetArgs, VaultOpenArgs, VaultRotateArgs, VaultStatusArgs, WordsArgs,
};
pub use earlier::{EarlierVaultVerb, PasswdArgs};
pub use error::VaultCliError;
pub use keys::with_signer;
pub use prompt::{SecretPrompt, TerminalPrompt};
pub use verbs::{
    AuditVerb, DerivedKeyVerb, OfflineVaultVerb, RecordVerb, RecoveryKeyCommandArgs,
    RecoveryKeyVerb, SlotVerb, SuccessorArgs, SuccessorVerb, WordsVerb,
};

/// Runs the command and prints its result to `out`, as one line of JSON if `json` is set.
///
/// # Errors
/// See [`VaultCliError`].
pub fn run(
    verb: OfflineVaultVerb,
    json: bool,
    out: &mut dyn Write,
    ask: &mut dyn SecretPrompt,
) -> Result<(), VaultCliError> {
    let mut cli = VaultCli { json, out, ask };
    match verb {
        OfflineVaultVerb::Audit(AuditVerb::Show {
            log,
            vault_dir,
            last,
        }) => cli.audit_show(&log, &vault_dir, last),
        OfflineVaultVerb::Audit(AuditVerb::Verify(args)) => cli.audit_verify(&args),
        OfflineVaultVerb::Earlier(verb) => run(verb.present(), json, cli.out, cli.ask),
        OfflineVaultVerb::Import(args) => cli.import(&args),
        OfflineVaultVerb::Init(args) => cli.init(&args),
        OfflineVaultVerb::Key(verb) => cli.key(verb),
        OfflineVaultVerb::Migrate(args) => cli.migrate(&args),
        OfflineVaultVerb::Record(verb) => cli.sealed_record(verb),
        OfflineVaultVerb::RecoveryKey(args) => cli.recovery_key(&args.chosen()),
        OfflineVaultVerb::Rekey(args) => cli.rekey(&args),
        OfflineVaultVerb::Selftest => cli.selftest(),
        OfflineVaultVerb::Slot(verb) => cli.slot(verb),
        OfflineVaultVerb::Status(args) => cli.status(&args),
        OfflineVaultVerb::Successor(args) => cli.successor(&args.file()?),
        OfflineVaultVerb::Words(WordsVerb::Show(open)) => cli.export_phrase(&open),
    }
}

struct VaultCli<'a> {
    json: bool,
    out: &'a mut dyn Write,
    ask: &'a mut dyn SecretPrompt,
}

impl VaultCli<'_> {
    /// Prints a result as JSON or as text.
    fn print(&mut self, value: &Value, text: &str) -> Result<(), VaultCliError> {
        if self.json {
            writeln!(self.out, "{value}")?;
        } else if !text.is_empty() {
            writeln!(self.out, "{text}")?;
        }
        self.out.flush()?;
        Ok(())
    }

    fn selftest(&mut self) -> Result<(), VaultCliError> {
        let suites = alknet_vault::selftest()?;
        let value: Vec<_> = suites
            .iter()
            .map(|suite| json!({"suite": suite.name, "cases": suite.cases}))
            .collect();
        let text: Vec<_> = suites
            .iter()
            .map(|suite| format!("{:20} {:>4} good", suite.name, suite.cases))
            .collect();
        self.print(&json!({ "suites": value }), &text.join("\n"))
    }
}
