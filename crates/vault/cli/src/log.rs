//! The log of what happened.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};

use alknet_vault::audit::verify;
use alknet_vault::limits::{AUDIT_FILES, MAX_AUDIT_LINE_BYTES};
use serde_json::{Value, json};

use crate::args::{DirArgs, OpenArgs};
use crate::place::{Opened, Place};
use crate::{Cli, CliError};

impl Cli<'_> {
    pub(crate) fn audit_show(
        &mut self,
        place: &DirArgs,
        last: Option<usize>,
    ) -> Result<(), CliError> {
        let place = Place::look(&place.dir);
        place.load()?;
        let mut kept: VecDeque<String> = VecDeque::new();
        for age in (0..AUDIT_FILES).rev() {
            let name = match age {
                0 => "vault.log".to_owned(),
                age => format!("vault.log.{age}"),
            };
            let path = place.path("audit").join(name);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(CliError::file(&path)(error)),
            };
            let mut reader = BufReader::new(file);
            loop {
                let mut line = Vec::new();
                let most = MAX_AUDIT_LINE_BYTES as u64;
                let read = (&mut reader).take(most).read_until(b'\n', &mut line);
                if read.map_err(CliError::file(&path))? == 0 {
                    break;
                }
                let line = self.shown(&line).ok_or_else(|| {
                    let text = format!("{}: this is no line of the log", path.display());
                    CliError::Corrupt(text)
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

    pub(crate) fn audit_verify(&mut self, open: &OpenArgs) -> Result<(), CliError> {
        let opened = Opened::open(open, self.ask)?;
        let verified = verify(&opened.place.path("audit"), &opened.vault)?;
        // Only now: a break must not be followed by lines of ours.
        opened.finish()?;
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
