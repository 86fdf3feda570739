//! `alknet vault`: what people do with a vault on their own computer.
//!
//! A [`OfflineVaultVerb`] is what was asked, as clap reads it; [`run`] does it in a directory with the two copies of
//! the vault (`vault.a`, `vault.b`), `seed.key` where there is a provisioning slot, `audit` and
//! `credentials`. Verbs that only need the recovery words work without one.
//!
//! Nothing here reaches a network, and what a node does with its own vault is elsewhere. A program with a network
//! adds `lock`, and asks nodes for their status ([`VaultStatusArgs::node`]). No program adds `unlock`: a machine
//! asks at its console for what opens its vault, and takes it from nowhere else.

mod args;
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
    LogArgs, MigrateArgs, NewArgs, PasswdArgs, PubArgs, RecordArgs, RecoveryKeyArgs, RekeyArgs,
    RemoveArgs, SealArgs, SlotArg, VaultOpenArgs, VaultRotateArgs, VaultStatusArgs, WordsArgs,
};
pub use error::VaultCliError;
pub use prompt::{SecretPrompt, TerminalPrompt};
pub use verbs::{AuditVerb, OfflineVaultVerb, SlotVerb};

/// Does what was asked, and prints it to `out`, as one line of JSON where that is asked for.
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
        OfflineVaultVerb::Audit(AuditVerb::Show { log, place, last }) => {
            cli.audit_show(&log, &place, last)
        }
        OfflineVaultVerb::Audit(AuditVerb::Verify(args)) => cli.audit_verify(&args),
        OfflineVaultVerb::Derive(args) => cli.derive(&args),
        OfflineVaultVerb::ExportKey(args) => cli.export_key(&args),
        OfflineVaultVerb::ExportPhrase(open) => cli.export_phrase(&open),
        OfflineVaultVerb::Import(args) => cli.import(&args),
        OfflineVaultVerb::Init(args) => cli.init(&args),
        OfflineVaultVerb::List(place) => cli.list(&place),
        OfflineVaultVerb::Migrate(args) => cli.migrate(&args),
        OfflineVaultVerb::Open(args) => cli.open(&args),
        OfflineVaultVerb::Passwd(args) => cli.passwd(&args),
        OfflineVaultVerb::Pub(args) => cli.public(&args),
        OfflineVaultVerb::RecoveryKey(args) => cli.recovery_key(&args),
        OfflineVaultVerb::Rekey(args) => cli.rekey(&args),
        OfflineVaultVerb::Remove(args) => cli.remove(&args),
        OfflineVaultVerb::Rotate(args) => cli.rotate(&args),
        OfflineVaultVerb::Seal(args) => cli.seal(&args),
        OfflineVaultVerb::Selftest => cli.selftest(),
        OfflineVaultVerb::Slot(verb) => cli.slot(verb),
        OfflineVaultVerb::Status(args) => cli.status(&args),
        OfflineVaultVerb::Successor { file } => cli.successor(&file),
    }
}

struct VaultCli<'a> {
    json: bool,
    out: &'a mut dyn Write,
    ask: &'a mut dyn SecretPrompt,
}

impl VaultCli<'_> {
    /// A result in the form that was asked for.
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
