//! The log of what happened.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use alknet_vault::audit::{VerifiedLog, verify};
use alknet_vault::limits::{AUDIT_FILES, MAX_AUDIT_LINE_BYTES};
use serde_json::{Value, json};

use crate::args::{AuditVerifyArgs, DirArgs, LogArgs};
use crate::vault_dir::{OpenVaultDir, VaultDir, offline};
use crate::{VaultCli, VaultCliError};

impl VaultCli<'_> {
    pub(crate) fn audit_show(
        &mut self,
        log: &LogArgs,
        place: &DirArgs,
        last: Option<usize>,
    ) -> Result<(), VaultCliError> {
        let dir = match &log.log {
            Some(dir) => there(dir)?,
            None => {
                let place = VaultDir::look(&place.dir);
                place.load()?;
                place.path("audit")
            }
        };
        let mut kept: VecDeque<String> = VecDeque::new();
        for age in (0..AUDIT_FILES).rev() {
            let name = match age {
                0 => "vault.log".to_owned(),
                age => format!("vault.log.{age}"),
            };
            let path = dir.join(name);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(VaultCliError::file(&path)(error)),
            };
            let mut reader = BufReader::new(file);
            loop {
                let mut line = Vec::new();
                // A line that does not end must not fill the memory; what is cut is then no line.
                let most = MAX_AUDIT_LINE_BYTES as u64;
                let read = (&mut reader).take(most).read_until(b'\n', &mut line);
                if read.map_err(VaultCliError::file(&path))? == 0 {
                    break;
                }
                let line = self.shown(&line).ok_or_else(|| {
                    let text = format!("{}: this is no line of the log", path.display());
                    VaultCliError::Corrupt(text)
                })?;
                match last {
                    None => writeln!(self.out, "{line}")?,
                    Some(last) => {
                        kept.push_back(line);
                        if kept.len() > last {
                            kept.pop_front();
                        }
                    }
                }
            }
        }
        for line in kept {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()?;
        Ok(())
    }

    pub(crate) fn audit_verify(&mut self, args: &AuditVerifyArgs) -> Result<(), VaultCliError> {
        let elsewhere = args.log.log.as_deref().map(there).transpose()?;
        let verified = if args.words.asked() {
            let dir = match elsewhere {
                Some(dir) => dir,
                None => there(&args.open.place.dir.join("audit"))?,
            };
            verify(&dir, &offline(&args.words, self.ask)?)?
        } else {
            self.verify_by_vault(args, elsewhere)?
        };
        let value = json!({
            "lines": verified.lines,
            "first": verified.first,
            "last": verified.last,
        });
        let text = format!(
            "{} lines, from {} to {}, are as they were written",
            verified.lines, verified.first, verified.last
        );
        self.print(&value, &text)
    }

    fn verify_by_vault(
        &mut self,
        args: &AuditVerifyArgs,
        elsewhere: Option<PathBuf>,
    ) -> Result<VerifiedLog, VaultCliError> {
        let opened = OpenVaultDir::open(&args.open, self.ask)?;
        let dir = elsewhere.unwrap_or_else(|| opened.place.path("audit"));
        let verified = verify(&dir, &opened.vault)?;
        // Only now: a break must not be followed by lines of ours.
        opened.finish()?;
        Ok(verified)
    }

    /// A line as it is shown: as it is, or for people.
    fn shown(&self, line: &[u8]) -> Option<String> {
        let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let value: Value = serde_json::from_str(line).ok()?;
        if self.json {
            return Some(line.to_owned());
        }
        let (seq, t) = (value["seq"].as_u64()?, value["t"].as_u64()?);
        // Written out by JSON, so that nothing in it moves the cursor.
        let event = value["ev"].as_str()?.escape_default();
        Some(format!("{seq:>6}  {t}  {event}  {}", value["detail"]))
    }
}

/// A folder that has a log: without a log there is nothing to verify, and the command does not report it
/// as whole.
fn there(dir: &Path) -> Result<PathBuf, VaultCliError> {
    // A power cut leaves the second alone while the first is begun.
    for name in ["vault.log", "vault.log.1"] {
        let log = dir.join(name);
        if log.try_exists().map_err(VaultCliError::file(&log))? {
            return Ok(dir.to_owned());
        }
    }
    let text = format!("there is no vault.log in {}", dir.display());
    Err(VaultCliError::Usage(text))
}
