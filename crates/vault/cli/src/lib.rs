//! `alknet vault`: what people do with a vault on their own computer.
//!
//! A [`Verb`] is what was asked, as clap reads it; [`run`] does it in a directory with the two copies of
//! the vault (`vault.a`, `vault.b`), `seed.key` where there is a provisioning slot, `audit` and
//! `credentials`. Verbs that only need the recovery words work without one.
//!
//! What a node does with its own vault is none of this: nothing here reaches a network. Whoever has one
//! adds `lock`, and asks nodes for their status ([`StatusArgs::node`]). Nobody adds `unlock`: a machine
//! asks at its console for what opens its vault, and takes it from nowhere else.

mod args;
mod ask;
mod error;
mod keys;
mod log;
mod new;
mod place;
mod progress;
mod recorder;
mod records;
mod slots;
mod verbs;

use std::io::Write;

use serde_json::{Value, json};

pub use args::{
    AuditVerifyArgs, CostArgs, CurveArg, DeriveArgs, DirArgs, ExportKeyArgs, ImportArgs, InitArgs,
    LogArgs, MigrateArgs, NewArgs, OpenArgs, PasswdArgs, PubArgs, RecordArgs, RecoveryKeyArgs,
    RekeyArgs, RemoveArgs, RotateArgs, SealArgs, SlotArg, StatusArgs, WordsArgs,
};
pub use ask::{Ask, Terminal};
pub use error::CliError;
pub use verbs::{AuditVerb, SlotVerb, Verb};

/// Does what was asked, and prints it to `out`, as one line of JSON where that is asked for.
///
/// # Errors
/// See [`CliError`].
pub fn run(verb: Verb, json: bool, out: &mut dyn Write, ask: &mut dyn Ask) -> Result<(), CliError> {
    let mut cli = Cli { json, out, ask };
    match verb {
        Verb::Audit(AuditVerb::Show { log, place, last }) => cli.audit_show(&log, &place, last),
        Verb::Audit(AuditVerb::Verify(args)) => cli.audit_verify(&args),
        Verb::Derive(args) => cli.derive(&args),
        Verb::ExportKey(args) => cli.export_key(&args),
        Verb::ExportPhrase(open) => cli.export_phrase(&open),
        Verb::Import(args) => cli.import(&args),
        Verb::Init(args) => cli.init(&args),
        Verb::List(place) => cli.list(&place),
        Verb::Migrate(args) => cli.migrate(&args),
        Verb::Open(args) => cli.open(&args),
        Verb::Passwd(args) => cli.passwd(&args),
        Verb::Pub(args) => cli.public(&args),
        Verb::RecoveryKey(args) => cli.recovery_key(&args),
        Verb::Rekey(args) => cli.rekey(&args),
        Verb::Remove(args) => cli.remove(&args),
        Verb::Rotate(args) => cli.rotate(&args),
        Verb::Seal(args) => cli.seal(&args),
        Verb::Selftest => cli.selftest(),
        Verb::Slot(verb) => cli.slot(verb),
        Verb::Status(args) => cli.status(&args),
        Verb::Successor { file } => cli.successor(&file),
    }
}

struct Cli<'a> {
    json: bool,
    out: &'a mut dyn Write,
    ask: &'a mut dyn Ask,
}

impl Cli<'_> {
    /// A result in the form that was asked for.
    fn print(&mut self, value: &Value, text: &str) -> Result<(), CliError> {
        if self.json {
            writeln!(self.out, "{value}")?;
        } else if !text.is_empty() {
            writeln!(self.out, "{text}")?;
        }
        self.out.flush()?;
        Ok(())
    }

    fn selftest(&mut self) -> Result<(), CliError> {
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
