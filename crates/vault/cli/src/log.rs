//! The verbs of the audit log.

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
        vault_dir: &DirArgs,
        last: Option<usize>,
    ) -> Result<(), VaultCliError> {
        let dir = match &log.log {
            Some(dir) => there(dir)?,
            None => {
                let vault_dir = VaultDir::unlocked(&vault_dir.dir);
                vault_dir.load()?;
                vault_dir.path("audit")
            }
        };
        let mut newest: VecDeque<String> = VecDeque::new();
        // The oldest file has the highest number.
        for age in (0..AUDIT_FILES).rev() {
            let name = match age {
                0 => "vault.log".to_owned(),
                age => format!("vault.log.{age}"),
            };
            let path = dir.join(name);
            let file = match File::open(&path) {
                Ok(file) => file,
                // A young log has fewer files.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(VaultCliError::file(&path)(error)),
            };
            let mut reader = BufReader::new(file);
            loop {
                let mut line = Vec::new();
                // The limit keeps a line without an end from filling memory; a line that is cut does not parse.
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
                        newest.push_back(line);
                        if newest.len() > last {
                            newest.pop_front();
                        }
                    }
                }
            }
        }
        for line in newest {
            writeln!(self.out, "{line}")?;
        }
        self.out.flush()?;
        Ok(())
    }

    pub(crate) fn audit_verify(&mut self, args: &AuditVerifyArgs) -> Result<(), VaultCliError> {
        let elsewhere = args.log.log.as_deref().map(there).transpose()?;
        let verified = if args.words.is_given() {
            let dir = match elsewhere {
                Some(dir) => dir,
                None => there(&args.open.vault_dir.dir.join("audit"))?,
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
        let dir = elsewhere.unwrap_or_else(|| opened.vault_dir.path("audit"));
        let verified = verify(&dir, &opened.vault)?;
        // The events of this command are written only now, so that no line of this program follows a break.
        opened.finish()?;
        Ok(verified)
    }

    /// A line as JSON, or as text for a person.
    fn shown(&self, line: &[u8]) -> Option<String> {
        let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
        let value: Value = serde_json::from_str(line).ok()?;
        if self.json {
            return Some(line.to_owned());
        }
        let (seq, t) = (value["seq"].as_u64()?, value["t"].as_u64()?);
        // The detail is printed as JSON, whose escapes keep its characters from moving the cursor.
        let event = value["ev"].as_str()?.escape_default();
        Some(format!("{seq:>6}  {t}  {event}  {}", value["detail"]))
    }
}

/// Checks that the folder has a log: without one there is nothing to verify, and the command must not report success.
fn there(dir: &Path) -> Result<PathBuf, VaultCliError> {
    // A power cut during a rotation can leave only the second file.
    for name in ["vault.log", "vault.log.1"] {
        let log = dir.join(name);
        if log.try_exists().map_err(VaultCliError::file(&log))? {
            return Ok(dir.to_owned());
        }
    }
    let text = format!("there is no vault.log in {}", dir.display());
    Err(VaultCliError::Usage(text))
}
