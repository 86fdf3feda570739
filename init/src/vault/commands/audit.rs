//! The command that shows the log of the vault.

use alknet_vault::audit::{AuditError, AuditLine, newest, verify};

use super::{Attempt, CommandContext, NeedInput};

/// How many lines are shown at once: the smallest console has room for them.
const LINES: usize = 15;
/// Characters of a line. A longer one would take the room of another.
const COLUMNS: usize = 79;

/// Whether the log is unchanged since it was written, and its newest lines, or those up to a
/// number.
pub(super) fn show(place: &CommandContext<'_>, until: Option<u64>) -> Attempt<Vec<String>> {
    let vault = place.vault.vault();
    // The node may be writing, so only a break that persists counts.
    let verified = verify(place.audit, &vault).or_else(|_| verify(place.audit, &vault));
    let whole = match verified {
        Ok(found) if found.lines == 0 => "there is no line yet".to_owned(),
        Ok(found) => format!(
            "{} lines, from {} to {}, are as they were written",
            found.lines, found.first, found.last
        ),
        Err(error @ AuditError::Broken { .. }) => format!("BROKEN: {error}"),
        Err(error) => return Err(NeedInput::refused(error)),
    };
    let lines = newest(place.audit, until, LINES).map_err(NeedInput::refused)?;
    let lines = lines.iter().map(text);
    Ok(std::iter::once(whole).chain(lines).collect())
}

fn text(line: &AuditLine) -> String {
    let seconds = i64::try_from(line.t_ms / 1_000).ok();
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let time = time.map_or_else(|| "-".to_owned(), |time| time.to_string());
    let text = format!("{:>6}  {time}  {}  {}", line.seq, line.event, line.detail);
    text.chars().take(COLUMNS).collect()
}
