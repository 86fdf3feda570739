//! `cache`: the content of the cache, and how the commands limit its size.
//!
//! docs/development.md says which parts go first, and which never.

mod candidates;
#[cfg(test)]
mod cargo_tests;
mod command_lock;
mod folders;
mod marked;
mod names;
mod needs;
mod prune;
#[cfg(test)]
mod tests;
mod units;
mod usage;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

pub use self::command_lock::CommandLock;
use self::folders::FolderUsage;
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};

/// The default limit in GiB. The needs of a tree that is built, checked and tested fit in twice.
const LIMIT_GIB: &str = "15";

/// Like `LIMIT_GIB`, in bytes.
const LIMIT_BYTES: u64 = 15 * GIB;

const GIB: u64 = 1 << 30;

/// Longest time for counting at the end of a command. 200,000 files whose metadata are in memory
/// take 0.6 s on two busy cores, and three times that if the metadata have to be read from disk.
const AFTER_WITHIN: Duration = Duration::from_millis(800);

/// How long a recorded size is good enough for the hint if counting takes longer than that.
const REMEMBERED_FOR: Duration = Duration::from_secs(7 * 86_400);

/// The file with the last known size of the cache.
const REMEMBERED: &str = "size";

/// Arguments of `cache`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct CacheArgs {
    /// Remove what was not used for the longest time until the cache is below the limit
    #[arg(long)]
    prune: bool,
    /// Size in GiB that pruning stays below
    #[arg(long, value_name = "GIB", requires = "prune", default_value = LIMIT_GIB, value_parser = limit)]
    limit: u64,
    /// Say what pruning would remove, and remove nothing
    #[arg(long, requires = "prune")]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLE: &str = "\
Example: make room, after a look at what would go

  cargo xtask cache --prune --limit 10 --dry-run
  cargo xtask cache --prune --limit 10

What the tree that is checked out needs is never removed; where that alone passes
the limit, the exit code is 5.";

/// Shows the table, or prunes.
pub(crate) fn run(cx: &XtaskContext, arguments: &CacheArgs) -> Result<()> {
    if arguments.prune {
        let pruned = prune::run(cx, arguments.limit, arguments.dry_run)?;
        if arguments.json {
            println!("{:#}", pruned.json());
        } else {
            print!("{}", pruned.text());
        }
        if !arguments.dry_run {
            remember(cx.cache(), pruned.after());
        }
        return pruned.check();
    }
    let rows = folders::rows(cx.cache()).map_err(counting(cx.cache()))?;
    let total = FolderUsage::total(&rows);
    remember(cx.cache(), total.bytes);
    if arguments.json {
        let row = |row: &FolderUsage| {
            json!({
                "folder": row.name,
                "bytes": row.usage.bytes,
                "entries": row.usage.entries,
                "last_used": row.usage.last_used.map(when),
            })
        };
        let folders: Vec<_> = rows.iter().map(row).collect();
        let total = json!({ "bytes": total.bytes, "entries": total.entries, "folders": folders });
        println!("{total:#}");
    } else {
        print!("{}", table(&rows));
    }
    Ok(())
}

/// The lock of a command that uses the cache. The command holds it as long as it runs, so that
/// nothing is pruned meanwhile.
pub fn in_use(cx: &XtaskContext) -> Result<CommandLock> {
    CommandLock::beside_others(cx.cache()).map_err(TaskError::io("lock the cache"))
}

/// The size of the cache while a command runs, counted on threads beside its steps.
#[derive(Debug)]
pub struct CacheSizeMonitor {
    cache: PathBuf,
    before: Counting,
    /// The count after the build. It replaces the count at the end if that takes too long.
    built: Option<Counting>,
}

/// A count under way.
type Counting = JoinHandle<Option<u64>>;

impl CacheSizeMonitor {
    /// Begins to count what a command finds.
    pub fn begin(cx: &XtaskContext) -> Self {
        Self::start(cx.cache())
    }

    fn start(cache: &Path) -> Self {
        Self {
            cache: cache.to_owned(),
            before: count(cache),
            built: None,
        }
    }

    /// Begins to count again: everything is built, and what follows adds little.
    pub fn built(&mut self) {
        self.built = Some(count(&self.cache));
    }

    /// The report for the end of a command: how large the cache was and is, and how to make it
    /// smaller if it exceeds the default limit. Takes less than a second.
    pub fn report(self) -> String {
        self.report_within(AFTER_WITHIN)
    }

    fn report_within(self, within: Duration) -> String {
        let now = bytes_within(&self.cache, within);
        let (before, built) = (
            result_if_ended(self.before),
            self.built.and_then(result_if_ended),
        );
        let after = now.or(built);
        if let Some(bytes) = after.or(before) {
            remember(&self.cache, bytes);
        }
        sizes(before, after) + &hint(after.or_else(|| remembered(&self.cache)))
    }
}

fn count(cache: &Path) -> Counting {
    let all = [vec![cache.to_owned()]];
    thread::spawn(move || Some(usage::measure(&all).ok()?.first()?.bytes))
}

/// `None` if the count has not ended: a command that failed at once does not wait for it.
fn result_if_ended(counting: Counting) -> Option<u64> {
    // A count that still runs is not waited for: the user has the result and wants the prompt.
    let has_ended = counting.is_finished();
    has_ended.then(|| counting.join().ok()?)?
}

/// A line, if a size is known.
fn sizes(before: Option<u64>, after: Option<u64>) -> String {
    match (before.map(size), after.map(size)) {
        (Some(before), Some(after)) => format!("  cache: {before} before, {after} now\n"),
        (Some(before), None) => {
            format!("  cache: {before} before; `cargo xtask cache` counts it again\n")
        }
        (None, Some(after)) => format!("  cache: {after} now\n"),
        (None, None) => String::new(),
    }
}

/// A line, if the cache exceeds the default limit.
fn hint(bytes: Option<u64>) -> String {
    let Some(bytes) = bytes.filter(|bytes| *bytes > LIMIT_BYTES) else {
        return String::new();
    };
    format!(
        "  the cache has grown to {}: `cargo xtask cache --prune` brings it below {LIMIT_GIB} GiB\n",
        size(bytes)
    )
}

/// The size of the cache. `None` if counting takes too long, or the cache cannot be read.
fn bytes_within(cache: &Path, within: Duration) -> Option<u64> {
    let all: [Vec<PathBuf>; 1] = [vec![cache.to_owned()]];
    let counted = usage::measure_until(&all, Some(Instant::now() + within)).ok()??;
    Some(counted.first()?.bytes)
}

fn remember(cache: &Path, bytes: u64) {
    // Without the file the next command counts again.
    let _ = fs::write(cache.join(REMEMBERED), bytes.to_string());
}

fn remembered(cache: &Path) -> Option<u64> {
    let file = cache.join(REMEMBERED);
    let written = fs::metadata(&file).ok()?.modified().ok()?;
    let age = SystemTime::now()
        .duration_since(written)
        .unwrap_or_default();
    // The user may have cleared or filled the cache since.
    if age > REMEMBERED_FOR {
        return None;
    }
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn counting(cache: &Path) -> impl FnOnce(io::Error) -> TaskError + use<> {
    TaskError::io(format!("count what {} holds", cache.display()))
}

fn table(rows: &[FolderUsage]) -> String {
    let names = rows.iter().map(|row| row.name.chars().count());
    let width = names.max().unwrap_or(0).max("folder".len());
    let line = |name: &str, size: &str, entries: &str, used: &str| {
        format!("  {name:width$}  {size:>10}  {entries:>9}  {used}\n")
    };
    let mut text = line("folder", "on disk", "entries", "last used");
    let total = FolderUsage {
        name: "total".to_owned(),
        usage: FolderUsage::total(rows),
    };
    for row in rows.iter().chain([&total]) {
        let used = row.usage.last_used.map_or_else(String::new, when);
        let entries = row.usage.entries.to_string();
        text += &line(&row.name, &size(row.usage.bytes), &entries, &used);
    }
    text
}

/// A size for people.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let (name, unit) = UNITS
        .into_iter()
        .find(|(_, unit)| bytes >= *unit)
        .unwrap_or(("KiB", 1 << 10));
    // Tenths, rounded down: a size shown as 15.0 GiB has reached 15 GiB.
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// A time in UTC, to the second.
fn when(time: SystemTime) -> String {
    // A time that no calendar has, as archives may contain, is shown as the nearest possible one.
    jiff::Timestamp::try_from(time)
        .unwrap_or(jiff::Timestamp::MIN)
        .strftime("%FT%TZ")
        .to_string()
}

/// Bytes of a limit in GiB, which may be a fraction.
fn limit(text: &str) -> std::result::Result<u64, String> {
    let gib: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(gib > 0.0 && gib <= 1e6) {
        return Err("not between 0 and a million".to_owned());
    }
    // At most 2^50: far below where a float ends, and never negative.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "see above"
    )]
    let bytes = (gib * GIB as f64) as u64;
    Ok(bytes)
}
