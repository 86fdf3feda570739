//! Heavy sources: pinned by SHA-256, taken from the first origin that has a match.

mod debian;
mod npm;
mod pins;
mod pypi;
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
    /// Its path.
    pub path: PathBuf,
    /// The accepted version that it is.
    pub pin: SourcePin,
}

/// The accepted versions of a source, best first.
pub fn accepted(name: &str) -> Result<Vec<SourcePin>> {
    Ok(SourcePins::own()?.find(name)?.pins.clone())
}

/// The public address of a version: its project's, or that in Debian's archive of all times. `None` if
/// only a registry of packages has it.
pub(crate) fn address(pin: &SourcePin) -> Option<String> {
    let snapshot = pin.debian.as_ref().and_then(|it| it.snapshot.as_ref());
    let archived = snapshot.map(|snapshot| format!("{SNAPSHOT}/{snapshot}"));
    pin.upstream.clone().or(archived)
}

/// Every pinned source: its name, and its accepted versions.
pub(crate) fn pinned() -> Result<Vec<(String, Vec<SourcePin>)>> {
    Ok(SourcePins::own()?.into_all())
}

/// The first accepted version of a source that is in the cache, unverified, or else the best.
pub(crate) fn likely(cx: &XtaskContext, name: &str) -> Result<SourcePin> {
    let pins = accepted(name)?;
    let store = cx.cache().join("sources");
    let there = pins.iter().find(|pin| kept_path(&store, pin).exists());
    let likely = there.or_else(|| pins.first()).cloned();
    likely.ok_or_else(|| TaskError::Arguments(format!("sources.toml: {name} has no version")))
}

/// The address of the Debian archive that this machine's package client uses.
pub fn debian_archive() -> Result<String> {
    debian::address()
}

/// Gets a source: from the user's folder, the cache, Debian, a registry of packages, or upstream.
pub fn obtain(cx: &XtaskContext, name: &str) -> Result<PinnedFile> {
    let pins = SourcePins::own()?;
    let source = pins.find(name)?;
    let store = cx.cache().join("sources");
    // The folder that the user named comes first: a machine without a network builds from it.
    if let Some(folder) = &cx.sources
        && let Some(found) = in_folder(source, folder, &store)?
    {
        return Ok(found);
    }
    if let Some(found) = in_cache(source, &store)? {
        return Ok(found);
    }
    let mut search = SourceSearch {
        cx,
        source,
        store,
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
    if let Some(found) = search.pypi()? {
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

/// Takes a source from the user's folder. A file of the right name must have the right bytes:
/// falling back silently would hide that the folder is not what the user believes. The file is
/// copied into `store`, and the copy is checked and used: every user who can write in the folder
/// may change the file at any time, and some of these files are programs.
fn in_folder(source: &PinnedSource, folder: &Path, store: &Path) -> Result<Option<PinnedFile>> {
    let mut refused = Vec::new();
    for pin in &source.pins {
        let path = folder.join(&pin.file);
        if !path.exists() {
            continue;
        }
        let fresh = beside(store, pin)?;
        File::open(&path)
            .and_then(|mut file| io::copy(&mut file, &mut fresh.as_file()))
            .map_err(TaskError::io(format!("copy {}", path.display())))?;
        match settle(fresh, store, pin)? {
            Ok(found) => return Ok(Some(found)),
            Err(got) => refused.push(mismatch(&path, pin, &got)),
        }
    }
    if refused.is_empty() {
        return Ok(None);
    }
    // The user named the folder, so a wrong file in it is an error and not a reason to look
    // elsewhere.
    Err(TaskError::Source {
        name: source.name.clone(),
        attempts: refused,
    })
}

fn in_cache(source: &PinnedSource, store: &Path) -> Result<Option<PinnedFile>> {
    for pin in &source.pins {
        let path = kept_path(store, pin);
        if !path.exists() {
            continue;
        }
        // The file is verified each time: a disk may have damaged it, or another program changed
        // it.
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

fn kept_path(store: &Path, pin: &SourcePin) -> PathBuf {
    store.join(&pin.sha256).join(&pin.file)
}

/// A temporary file in the folder of a pin's file.
fn beside(store: &Path, pin: &SourcePin) -> Result<NamedTempFile> {
    let path = kept_path(store, pin);
    let folder = path.parent().unwrap_or(store);
    fs::create_dir_all(folder).map_err(TaskError::io(format!("make {}", folder.display())))?;
    NamedTempFile::new_in(folder).map_err(TaskError::io(format!("write in {}", folder.display())))
}

/// Moves the file to its path if it matches, unless a matching one is there: another command may
/// have started that one. Otherwise the hash that it has.
fn settle(
    fresh: NamedTempFile,
    store: &Path,
    pin: &SourcePin,
) -> Result<std::result::Result<PinnedFile, String>> {
    if let Some(got) = verify(fresh.path(), pin)? {
        return Ok(Err(got));
    }
    let path = kept_path(store, pin);
    // A correct file stays, since another command may be reading it.
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

/// The hash that a file has instead of the pinned one. `None` if it matches.
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

/// Looks at origins that cost a download, and records the results.
struct SourceSearch<'a> {
    cx: &'a XtaskContext,
    source: &'a PinnedSource,
    store: PathBuf,
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
                self.note("Debian", error)?;
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

    fn pypi(&mut self) -> Result<Option<PinnedFile>> {
        for pin in &self.source.pins {
            let Some(package) = &pin.pypi else {
                continue;
            };
            let what = format!("PyPI {package}");
            let fetch = |to: &Path| pypi::fetch(self.cx, package, &pin.sha256, to);
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
            let member = place.member.as_deref();
            let fetch = |to: &Path| debian::fetch_from_snapshot(self.cx, &address, member, to);
            let found = self.take(pin, &address, fetch)?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Records that an origin failed: another one may have the source.
    ///
    /// # Errors
    /// The search was ended because another step failed, which says nothing about the origin.
    fn note(&mut self, what: &str, error: TaskError) -> Result<()> {
        if matches!(error, TaskError::Abandoned) {
            return Err(error);
        }
        self.attempts.push(format!("  {what}: {error}"));
        Ok(())
    }

    /// Fetches beside the final path, and moves the file there only if it matches.
    fn take(
        &mut self,
        pin: &SourcePin,
        what: &str,
        fetch: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Option<PinnedFile>> {
        let fresh = beside(&self.store, pin)?;
        if let Err(error) = fetch(fresh.path()) {
            self.note(what, error)?;
            return Ok(None);
        }
        match settle(fresh, &self.store, pin)? {
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
            // The hash is checked afterwards, so it does not matter which server answers.
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
            pypi: None,
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
        let store = tempfile::tempdir().expect("a temporary folder");
        let source = source(vec![pin("2", &"0".repeat(64)), pin("1", ABC)]);
        let found = in_folder(&source, folder.path(), store.path())
            .expect("readable")
            .expect("it matches");
        assert_eq!(found.pin.version, "1");
    }

    /// Minutes pass between the check of a file and its use, and some of these files are started.
    #[test]
    fn what_is_put_into_the_users_folder_afterwards_is_not_used() {
        let folder = folder_with("abc");
        let store = tempfile::tempdir().expect("a temporary folder");
        let source = source(vec![pin("1", ABC)]);
        let obtain = || in_folder(&source, folder.path(), store.path());
        let found = obtain().expect("readable").expect("it matches");
        let file = folder.path().join("f.tar.xz");
        fs::write(&file, "another program").expect("it is writable");
        assert_eq!(fs::read(&found.path).expect("readable"), b"abc");
        obtain().expect_err("it does not match any more");
        assert_eq!(fs::read(&found.path).expect("readable"), b"abc");
        // A running program is not replaced by the same file once more.
        fs::write(&file, "abc").expect("it is writable");
        let inode = || fs::metadata(&found.path).expect("it is there").ino();
        let before = inode();
        assert!(obtain().expect("readable").is_some());
        assert_eq!(inode(), before);
    }

    #[test]
    fn a_mismatch_in_the_users_folder_is_refused_by_name() {
        let folder = folder_with("abd");
        let store = tempfile::tempdir().expect("a temporary folder");
        let source = source(vec![pin("1", ABC)]);
        let error = in_folder(&source, folder.path(), store.path()).expect_err("wrong bytes");
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
        let [folder, store] = [(); 2].map(|()| tempfile::tempdir().expect("a temporary folder"));
        let source = source(vec![pin("1", ABC)]);
        let found = in_folder(&source, folder.path(), store.path()).expect("fine");
        assert!(found.is_none());
    }

    /// The command would report the missing source in place of the step that failed.
    #[test]
    fn a_search_that_was_ended_for_another_step_lacks_no_source() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cx = XtaskContext::in_folder(folder.path());
        let source = source(vec![pin("1", ABC)]);
        let mut search = SourceSearch {
            cx: &cx,
            source: &source,
            store: folder.path().join("sources"),
            attempts: Vec::new(),
        };
        let [pin] = source.pins.as_slice() else {
            panic!("one pin");
        };
        let refused = || Err(TaskError::Workspace("no route".to_owned()));
        let found = search.take(pin, "a mirror", |_| refused());
        assert!(found.expect("another may have it").is_none());
        let ended = search.take(pin, "an archive", |_| Err(TaskError::Abandoned));
        assert!(matches!(ended, Err(TaskError::Abandoned)));
        assert_eq!(search.attempts, ["  a mirror: no route"]);
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
