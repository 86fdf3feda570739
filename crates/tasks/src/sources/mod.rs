//! Heavy sources: pinned by SHA-256, taken from whichever place has a match first.

mod debian;
mod npm;
mod pins;
mod registry;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::NamedTempFile;

use self::debian::DebianArchive;
pub use self::pins::SourcePin;
use self::pins::{PinnedSource, SourcePins};
use crate::context::XtaskContext;
use crate::digest;
use crate::failure::{Result, TaskError};

/// Debian's archive of all times, by date.
const SNAPSHOT: &str = "https://snapshot.debian.org/archive/debian";

/// A file whose bytes are those of its pin.
#[derive(Clone, Debug)]
pub struct PinnedFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Which accepted version it is.
    pub pin: SourcePin,
}

/// The accepted versions of a source, best first.
pub fn accepted(name: &str) -> Result<Vec<SourcePin>> {
    Ok(SourcePins::own()?.find(name)?.pins.clone())
}

/// Every source that is pinned: its name, and its accepted versions.
pub(crate) fn pinned() -> Result<Vec<(String, Vec<SourcePin>)>> {
    Ok(SourcePins::own()?.into_all())
}

/// The first accepted version of a source that lies in the cache, unread, else the best.
pub(crate) fn likely(cx: &XtaskContext, name: &str) -> Result<SourcePin> {
    let pins = accepted(name)?;
    let kept = cx.cache().join("sources");
    let there = pins.iter().find(|pin| kept_path(&kept, pin).exists());
    let likely = there.or_else(|| pins.first()).cloned();
    likely.ok_or_else(|| TaskError::Arguments(format!("sources.toml: {name} has no version")))
}

/// Gets a source: from the user's folder, the cache, Debian, a registry of packages, or upstream.
pub fn obtain(cx: &XtaskContext, name: &str) -> Result<PinnedFile> {
    let pins = SourcePins::own()?;
    let source = pins.find(name)?;
    let kept = cx.cache().join("sources");
    // The folder that the user named comes first: this is how a machine without a network builds.
    if let Some(folder) = &cx.sources
        && let Some(found) = in_folder(source, folder, &kept)?
    {
        return Ok(found);
    }
    if let Some(found) = in_cache(source, &kept)? {
        return Ok(found);
    }
    let mut search = SourceSearch {
        cx,
        source,
        kept,
        attempts: Vec::new(),
    };
    if let Some(found) = search.debian(&pins.suites())? {
        return Ok(found);
    }
    if let Some(found) = search.npm()? {
        return Ok(found);
    }
    if let Some(found) = search.crates()? {
        return Ok(found);
    }
    if let Some(found) = search.pool()? {
        return Ok(found);
    }
    if let Some(found) = search.upstream()? {
        return Ok(found);
    }
    if let Some(found) = search.snapshot()? {
        return Ok(found);
    }
    Err(TaskError::Source {
        name: name.to_owned(),
        attempts: search.attempts,
    })
}

/// A file of the right name in the user's folder must have the right bytes: falling back silently would hide that the
/// folder is not what the user believes. It is copied to `kept`, and the copy is checked and used: every user who can
/// write in the folder may change the file at any time, and some of these files are programs.
fn in_folder(source: &PinnedSource, folder: &Path, kept: &Path) -> Result<Option<PinnedFile>> {
    let mut refused = Vec::new();
    for pin in &source.pins {
        let path = folder.join(&pin.file);
        if !path.exists() {
            continue;
        }
        let fresh = beside(kept, pin)?;
        File::open(&path)
            .and_then(|mut file| io::copy(&mut file, &mut fresh.as_file()))
            .map_err(TaskError::io(format!("copy {}", path.display())))?;
        match settle(fresh, kept, pin)? {
            Ok(found) => return Ok(Some(found)),
            Err(got) => refused.push(mismatch(&path, pin, &got)),
        }
    }
    if refused.is_empty() {
        return Ok(None);
    }
    // The user named the folder, so a wrong file in it is an error and not a reason to look elsewhere.
    Err(TaskError::Source {
        name: source.name.clone(),
        attempts: refused,
    })
}

fn in_cache(source: &PinnedSource, kept: &Path) -> Result<Option<PinnedFile>> {
    for pin in &source.pins {
        let path = kept_path(kept, pin);
        if !path.exists() {
            continue;
        }
        // Each time: a disk may have damaged it, or another program changed it.
        if verify(&path, pin)?.is_none() {
            return Ok(Some(PinnedFile {
                path,
                pin: pin.clone(),
            }));
        }
        fs::remove_file(&path).map_err(TaskError::io(format!("remove {}", path.display())))?;
    }
    Ok(None)
}

fn kept_path(kept: &Path, pin: &SourcePin) -> PathBuf {
    kept.join(&pin.sha256).join(&pin.file)
}

/// A file beside the place of a pin's.
fn beside(kept: &Path, pin: &SourcePin) -> Result<NamedTempFile> {
    let path = kept_path(kept, pin);
    let folder = path.parent().unwrap_or(kept);
    fs::create_dir_all(folder).map_err(TaskError::io(format!("make {}", folder.display())))?;
    NamedTempFile::new_in(folder).map_err(TaskError::io(format!("write in {}", folder.display())))
}

/// Moves it there if it matches, unless one that matches is there: another command may have started that. Else the hash
/// that it has.
fn settle(
    fresh: NamedTempFile,
    kept: &Path,
    pin: &SourcePin,
) -> Result<std::result::Result<PinnedFile, String>> {
    if let Some(got) = verify(fresh.path(), pin)? {
        return Ok(Err(got));
    }
    let path = kept_path(kept, pin);
    // What is there and right stays, since another command may be reading it.
    if !path.exists() || verify(&path, pin)?.is_some() {
        fresh
            .persist(&path)
            .map_err(|error| TaskError::io("keep a source")(error.error))?;
    }
    Ok(Ok(PinnedFile {
        path,
        pin: pin.clone(),
    }))
}

/// The hash that a file has instead of the pinned one; none when it matches.
fn verify(path: &Path, pin: &SourcePin) -> Result<Option<String>> {
    let got = digest::of_file(path).map_err(TaskError::io(format!("read {}", path.display())))?;
    Ok((got != pin.sha256).then_some(got))
}

fn mismatch(path: &Path, pin: &SourcePin, got: &str) -> String {
    format!(
        "  {}: not the pinned {}: SHA-256 expected {}, got {got}",
        path.display(),
        pin.version,
        pin.sha256
    )
}

/// Looks in places that cost a download, and remembers what came of it.
struct SourceSearch<'a> {
    cx: &'a XtaskContext,
    source: &'a PinnedSource,
    kept: PathBuf,
    attempts: Vec<String>,
}

impl SourceSearch<'_> {
    fn debian(&mut self, suites: &[&str]) -> Result<Option<PinnedFile>> {
        let places: Vec<_> = self
            .source
            .pins
            .iter()
            .filter_map(|pin| Some((pin, pin.debian.as_ref()?)))
            .collect();
        if places.is_empty() {
            return Ok(None);
        }
        let archive = match DebianArchive::open(self.cx, suites) {
            Ok(archive) => archive,
            Err(error) => {
                // Another place may have it.
                self.attempts.push(format!("  Debian: {error}"));
                return Ok(None);
            }
        };
        for (pin, place) in places {
            let what = format!(
                "Debian {} {} ({})",
                place.package, place.version, place.suite
            );
            let found = self.take(pin, &what, |to| archive.fetch(self.cx, place, to))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn npm(&mut self) -> Result<Option<PinnedFile>> {
        for pin in &self.source.pins {
            let Some(package) = &pin.npm else {
                continue;
            };
            let what = format!("npm {package}");
            let found = self.take(pin, &what, |to| npm::fetch(self.cx, package, to))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn crates(&mut self) -> Result<Option<PinnedFile>> {
        for pin in &self.source.pins {
            let Some(package) = &pin.cargo else {
                continue;
            };
            let what = format!("cargo {package}");
            let fetch = |to: &Path| registry::fetch(self.cx, package, &pin.sha256, to);
            let found = self.take(pin, &what, fetch)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn pool(&mut self) -> Result<Option<PinnedFile>> {
        for pin in &self.source.pins {
            let Some(path) = &pin.pool else {
                continue;
            };
            let what = format!("Debian {path}");
            let fetch = |to: &Path| debian::fetch_from_pool(self.cx, path, to);
            let found = self.take(pin, &what, fetch)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn upstream(&mut self) -> Result<Option<PinnedFile>> {
        for pin in &self.source.pins {
            let Some(address) = &pin.upstream else {
                continue;
            };
            let found = self.take(pin, address, |to| download(self.cx, address, to))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    fn snapshot(&mut self) -> Result<Option<PinnedFile>> {
        for pin in &self.source.pins {
            let place = pin.debian.as_ref();
            let Some((place, snapshot)) = place.zip(place.and_then(|it| it.snapshot.as_ref()))
            else {
                continue;
            };
            let address = format!("{SNAPSHOT}/{snapshot}");
            let fetch =
                |to: &Path| debian::fetch_from_snapshot(self.cx, &address, &place.member, to);
            let found = self.take(pin, &address, fetch)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Fetches beside the final place, and moves the file there only when it matches.
    fn take(
        &mut self,
        pin: &SourcePin,
        what: &str,
        fetch: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Option<PinnedFile>> {
        let fresh = beside(&self.kept, pin)?;
        if let Err(error) = fetch(fresh.path()) {
            self.attempts.push(format!("  {what}: {error}"));
            return Ok(None);
        }
        match settle(fresh, &self.kept, pin)? {
            Ok(found) => Ok(Some(found)),
            Err(got) => {
                let text = mismatch(Path::new(what), pin, &got);
                eprintln!("refused{text}");
                self.attempts.push(text);
                Ok(None)
            }
        }
    }
}

fn download(cx: &XtaskContext, address: &str, to: &Path) -> Result<()> {
    let mut command = Command::new("curl");
    command
        .args([
            "--fail",
            // The hash is checked afterwards, so that it does not matter who answers.
            "--location",
            "--silent",
            "--show-error",
            "--retry",
            "2",
        ])
        .args(["--connect-timeout", "20", "--output"])
        .arg(to)
        .arg(address);
    cx.run(&mut command, &format!("download {address}"), "download")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn pin(version: &str, sha256: &str) -> SourcePin {
        SourcePin {
            version: version.into(),
            file: "f.tar.xz".into(),
            sha256: sha256.into(),
            debian: None,
            cargo: None,
            npm: None,
            pool: None,
            upstream: None,
        }
    }

    fn source(pins: Vec<SourcePin>) -> PinnedSource {
        PinnedSource {
            name: "thing".into(),
            pins,
        }
    }

    fn folder_with(content: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("f.tar.xz"), content).expect("it is writable");
        folder
    }

    #[test]
    fn any_accepted_version_in_the_users_folder_will_do() {
        let folder = folder_with("abc");
        let kept = tempfile::tempdir().expect("a temporary folder");
        let source = source(vec![pin("2", &"0".repeat(64)), pin("1", ABC)]);
        let found = in_folder(&source, folder.path(), kept.path())
            .expect("readable")
            .expect("it matches");
        assert_eq!(found.pin.version, "1");
    }

    /// Minutes pass between the look at a file and its use, and some of these files are started.
    #[test]
    fn what_is_put_into_the_users_folder_afterwards_is_not_used() {
        let folder = folder_with("abc");
        let kept = tempfile::tempdir().expect("a temporary folder");
        let source = source(vec![pin("1", ABC)]);
        let obtain = || in_folder(&source, folder.path(), kept.path());
        let found = obtain().expect("readable").expect("it matches");
        let file = folder.path().join("f.tar.xz");
        fs::write(&file, "another program").expect("it is writable");
        assert_eq!(fs::read(&found.path).expect("readable"), b"abc");
        obtain().expect_err("it does not match any more");
        assert_eq!(fs::read(&found.path).expect("readable"), b"abc");
        // A program that runs is not replaced by the same once more.
        fs::write(&file, "abc").expect("it is writable");
        let inode = || fs::metadata(&found.path).expect("it is there").ino();
        let before = inode();
        assert!(obtain().expect("readable").is_some());
        assert_eq!(inode(), before);
    }

    #[test]
    fn a_mismatch_in_the_users_folder_is_refused_by_name() {
        let folder = folder_with("abd");
        let kept = tempfile::tempdir().expect("a temporary folder");
        let source = source(vec![pin("1", ABC)]);
        let error = in_folder(&source, folder.path(), kept.path()).expect_err("wrong bytes");
        let text = error.to_string();
        assert!(
            text.contains("thing") && text.contains("f.tar.xz"),
            "{text}"
        );
        assert!(
            text.contains(&format!("expected {ABC}")) && text.contains("got a52d159f"),
            "{text}"
        );
        assert_eq!(error.exit_code(), 3);
    }

    #[test]
    fn a_folder_without_the_file_is_no_mistake() {
        let [folder, kept] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let source = source(vec![pin("1", ABC)]);
        let found = in_folder(&source, folder.path(), kept.path()).expect("fine");
        assert!(found.is_none());
    }

    #[test]
    fn a_damaged_file_in_the_cache_is_thrown_away() {
        let cache = tempfile::tempdir().expect("a temporary folder");
        let pin = pin("1", ABC);
        let path = kept_path(cache.path(), &pin);
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("writable");
        fs::write(&path, "abd").expect("writable");
        let source = source(vec![pin]);
        assert!(in_cache(&source, cache.path()).expect("readable").is_none());
        assert!(!path.exists());
        fs::write(&path, "abc").expect("writable");
        assert!(in_cache(&source, cache.path()).expect("readable").is_some());
    }
}
