//! The client workflow of TUF (specification 1.0.34, section 5), without input and output.
//!
//! [`UpdateRefresh`] names the file that it needs, and takes the file's bytes. So the same code verifies a folder,
//! a bundle that streams by, and files that another node sends.

use std::collections::BTreeMap;
use std::mem;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::document::{MetaEntry, RootBody, SignedDocument, TufRole};
use crate::error::{KeysOrigin, UnixSeconds, UpdateError};
use crate::limits::ROOT_ROTATIONS_MAX;
use crate::release::ReleaseInfo;
use crate::target::UpdateTarget;
use crate::trust::{SeenTimestamp, UpdateTrust};
use crate::version::{DowngradeConsent, ReleaseVersion, UpdateStep, judge_version};

/// What a machine knows about the time. PID 1 names the source of its clock: `rtc` and `sntp` are known times, `stored`
/// and `build-time` are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateClock {
    /// The true time is this or later: the clock was never set, and shows the time of the build or the last one noted.
    AtLeast(UnixSeconds),
    /// The time, from a real-time clock or from the network.
    Known(UnixSeconds),
}

/// A file of metadata that a refresh needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataRequest {
    /// The name of the file in the folder of metadata.
    pub name: String,
    /// The most bytes to read. A longer file is refused.
    pub bytes_max: u64,
    /// Whether the refresh goes on if the file is not there.
    pub is_optional: bool,
}

/// Where metadata comes from.
pub trait MetadataSource {
    /// The bytes of a file, `None` if there is no such file.
    ///
    /// # Errors
    /// The medium or the server failed, or the file has more than `bytes_max` bytes.
    fn metadata(&mut self, request: &MetadataRequest) -> Result<Option<Vec<u8>>, UpdateError>;
}

/// The next document.
#[derive(Debug)]
enum RefreshStep {
    OwnersRoot,
    NextRoot,
    Timestamp,
    Snapshot(MetaEntry),
    Targets(MetaEntry),
    Done(VerifiedTargets),
    /// A document was refused; nothing more is asked for.
    Failed,
}

/// One run of the client workflow.
#[derive(Debug)]
pub struct UpdateRefresh {
    trust: UpdateTrust,
    /// Section 5.1: the time is fixed once, so that no document expires in the middle.
    now_s: i64,
    is_time_known: bool,
    /// When the first of the verified documents expires.
    expires_s: i64,
    rotations: u64,
    step: RefreshStep,
}

impl UpdateRefresh {
    pub(crate) fn new(trust: UpdateTrust, clock: UpdateClock) -> Self {
        let (now, is_time_known) = match clock {
            UpdateClock::Known(now) => (now, true),
            UpdateClock::AtLeast(now) => (now, false),
        };
        let step = match trust.root {
            Some(_) => RefreshStep::NextRoot,
            None => RefreshStep::OwnersRoot,
        };
        Self {
            // A clock that was set back must not make expired documents valid again.
            now_s: now.0.max(trust.latest().0),
            is_time_known,
            expires_s: i64::MAX,
            rotations: 0,
            step,
            trust,
        }
    }

    /// The file that is needed next; `None` when the refresh has ended, well or not.
    #[must_use]
    pub fn wanted(&self) -> Option<MetadataRequest> {
        let plain = |role: TufRole, is_optional| MetadataRequest {
            name: format!("{role}.json"),
            bytes_max: role.bytes_max(),
            is_optional,
        };
        match &self.step {
            RefreshStep::OwnersRoot => Some(plain(TufRole::Root, false)),
            RefreshStep::NextRoot => Some(MetadataRequest {
                name: format!("{}.root.json", self.root_version().saturating_add(1)),
                ..plain(TufRole::Root, true)
            }),
            RefreshStep::Timestamp => Some(plain(TufRole::Timestamp, false)),
            RefreshStep::Snapshot(entry) => Some(self.listed_document(TufRole::Snapshot, entry)),
            RefreshStep::Targets(entry) => Some(self.listed_document(TufRole::Targets, entry)),
            RefreshStep::Done(_) | RefreshStep::Failed => None,
        }
    }

    /// A document that another one names with its version, and perhaps with its length.
    fn listed_document(&self, role: TufRole, entry: &MetaEntry) -> MetadataRequest {
        let name = match self.trust.root.as_ref().is_some_and(|root| root.consistent) {
            true => format!("{}.{role}.json", entry.version),
            false => format!("{role}.json"),
        };
        MetadataRequest {
            name,
            // A document may leave the length out (section 4.4), and cannot raise the limit of the role.
            bytes_max: entry.bytes.unwrap_or(u64::MAX).min(role.bytes_max()),
            is_optional: false,
        }
    }

    fn root_version(&self) -> u64 {
        self.trust.root.as_ref().map_or(0, |root| root.version)
    }

    /// Takes the file that [`Self::wanted`] named, or `None` if there is no such file.
    ///
    /// # Errors
    /// The file is refused. The refresh has ended then; what was verified before stays in [`Self::into_trust`].
    pub fn supply(&mut self, file: Option<&[u8]>) -> Result<(), UpdateError> {
        let Some(wanted) = self.wanted() else {
            return Ok(());
        };
        let name = wanted.name;
        // Each error below leaves the refresh failed, so a source cannot offer another file in place of a refused one.
        let step = mem::replace(&mut self.step, RefreshStep::Failed);
        let Some(bytes) = file else {
            // Section 5.3.3: without a next root, the trusted one is the newest.
            if !matches!(step, RefreshStep::NextRoot) {
                return Err(UpdateError::Missing { file: name });
            }
            self.step = self.end_roots()?;
            return Ok(());
        };
        // The source may have ignored the limit of the request.
        if bytes.len() as u64 > wanted.bytes_max {
            return Err(UpdateError::TooLarge {
                file: name,
                max: wanted.bytes_max,
            });
        }
        self.step = match step {
            RefreshStep::OwnersRoot => self.owners_root(&name, bytes)?,
            RefreshStep::NextRoot => self.next_root(&name, bytes)?,
            RefreshStep::Timestamp => self.timestamp(&name, bytes)?,
            RefreshStep::Snapshot(entry) => self.snapshot(&name, bytes, &entry)?,
            RefreshStep::Targets(entry) => self.targets(&name, bytes, &entry)?,
            ended @ (RefreshStep::Done(_) | RefreshStep::Failed) => ended,
        };
        Ok(())
    }

    /// The first root of an owner's own keys: these keys sign it, and its own keys do.
    fn owners_root(&mut self, name: &str, bytes: &[u8]) -> Result<RefreshStep, UpdateError> {
        let document = SignedDocument::parse(name, TufRole::Root, bytes)?;
        let owner = self
            .trust
            .owner
            .as_ref()
            .ok_or_else(|| UpdateError::Missing {
                file: name.to_owned(),
            })?;
        // The configured keys come first: until they have signed, an attacker may have chosen the keys in the document.
        document.verify(owner, KeysOrigin::Configuration)?;
        let body = document.root()?;
        document.verify(body.role(TufRole::Root), KeysOrigin::Root(body.version))?;
        self.trust.adopt_root(bytes, body);
        Ok(RefreshStep::NextRoot)
    }

    /// Section 5.3: each root is signed by the keys of the one before and by its own, and is the next version.
    fn next_root(&mut self, name: &str, bytes: &[u8]) -> Result<RefreshStep, UpdateError> {
        let document = SignedDocument::parse(name, TufRole::Root, bytes)?;
        let trusted = self.trusted_root(name)?;
        // 5.3.4: an arbitrary software attack ends here.
        document.verify(
            trusted.role(TufRole::Root),
            KeysOrigin::Root(trusted.version),
        )?;
        let body = document.root()?;
        document.verify(body.role(TufRole::Root), KeysOrigin::Root(body.version))?;
        // 5.3.5: an older root could name keys that were stolen since.
        let expected = trusted.version.saturating_add(1);
        if body.version != expected {
            return Err(UpdateError::VersionMismatch {
                file: name.to_owned(),
                named_by: "its place".to_owned(),
                expected,
                found: body.version,
            });
        }
        // 5.3.6 and 5.3.8: its expiry does not matter, because a later root may follow.
        self.trust.adopt_root(bytes, body);
        self.rotations += 1;
        // 5.3.3: an endless chain ends here. The next refresh goes on with the root of this one.
        if self.rotations >= ROOT_ROTATIONS_MAX {
            return self.end_roots();
        }
        Ok(RefreshStep::NextRoot)
    }

    fn trusted_root(&self, name: &str) -> Result<&RootBody, UpdateError> {
        let root = self.trust.root.as_ref();
        root.ok_or_else(|| UpdateError::Missing {
            file: name.to_owned(),
        })
    }

    /// Section 5.3.10: the last root must be valid.
    fn end_roots(&mut self) -> Result<RefreshStep, UpdateError> {
        let root = self.trusted_root("root.json")?;
        let (name, expires_s) = (format!("{}.root.json", root.version), root.expires_s);
        self.check_expiry(&name, expires_s)?;
        Ok(RefreshStep::Timestamp)
    }

    /// Fails if a document is not valid any more.
    ///
    /// Where the time is only known to be later than some second, a document may have expired without notice. The
    /// machine takes it all the same: without a clock and without the network it could otherwise never be updated, and
    /// what it risks is to stay behind, which an attacker on its line can do to it anyway. Versions, the floor and
    /// signatures count as ever.
    fn check_expiry(&mut self, file: &str, expires_s: i64) -> Result<(), UpdateError> {
        if expires_s <= self.now_s {
            return Err(UpdateError::Expired {
                file: file.to_owned(),
                expired: UnixSeconds(expires_s),
                now: UnixSeconds(self.now_s),
            });
        }
        self.expires_s = self.expires_s.min(expires_s);
        Ok(())
    }

    /// Fails unless the keys of its role have signed a document.
    fn verified(
        &self,
        name: &str,
        role: TufRole,
        bytes: &[u8],
    ) -> Result<SignedDocument, UpdateError> {
        let document = SignedDocument::parse(name, role, bytes)?;
        let root = self.trusted_root(name)?;
        document.verify(root.role(role), KeysOrigin::Root(root.version))?;
        Ok(document)
    }

    /// Section 5.4.
    fn timestamp(&mut self, name: &str, bytes: &[u8]) -> Result<RefreshStep, UpdateError> {
        let document = self.verified(name, TufRole::Timestamp, bytes)?;
        let entry = entry_for(&document, name, TufRole::Snapshot)?;
        let fresh = SeenTimestamp {
            version: document.version()?,
            sha256: HEXLOWER.encode(&Sha256::digest(document.payload())),
            snapshot: entry.version,
        };
        if let Some(seen) = self.trust.timestamp() {
            // 5.4.3.1. The specification stops at an equal version; the same document is no reason to stop here,
            // because a machine may read one bundle twice.
            check_rollback(name, seen.version, fresh.version)?;
            if seen.version == fresh.version && seen.sha256 != fresh.sha256 {
                return Err(UpdateError::Equivocation {
                    file: name.to_owned(),
                    version: fresh.version,
                });
            }
            // 5.4.3.2.
            check_rollback("snapshot.json", seen.snapshot, fresh.snapshot)?;
        }
        // 5.4.4: a freeze attack ends here.
        self.check_expiry(name, document.expires_s()?)?;
        self.trust.see_timestamp(fresh);
        Ok(RefreshStep::Snapshot(entry))
    }

    /// Section 5.5.
    fn snapshot(
        &mut self,
        name: &str,
        bytes: &[u8],
        entry: &MetaEntry,
    ) -> Result<RefreshStep, UpdateError> {
        // 5.5.2: the timestamp names the bytes.
        check_bytes(name, bytes, entry)?;
        let document = self.verified(name, TufRole::Snapshot, bytes)?;
        // 5.5.4: a mix-and-match attack ends here.
        check_version(&document, name, "timestamp.json", entry)?;
        let meta = document.meta()?;
        // 5.5.5.
        for (file, seen) in self.trust.snapshot() {
            let offered = meta.get(file).ok_or_else(|| UpdateError::Removed {
                file: name.to_owned(),
                gone: file.clone(),
            })?;
            check_rollback(file, *seen, offered.version)?;
        }
        // 5.5.6: a freeze attack with an old snapshot ends here.
        self.check_expiry(name, document.expires_s()?)?;
        let targets = entry_for(&document, name, TufRole::Targets)?;
        let versions = meta.into_iter().map(|(file, entry)| (file, entry.version));
        self.trust.see_snapshot(versions.collect());
        Ok(RefreshStep::Targets(targets))
    }

    /// Section 5.6.
    fn targets(
        &mut self,
        name: &str,
        bytes: &[u8],
        entry: &MetaEntry,
    ) -> Result<RefreshStep, UpdateError> {
        check_bytes(name, bytes, entry)?;
        let document = self.verified(name, TufRole::Targets, bytes)?;
        // 5.6.4: a mix-and-match attack with the targets of another release ends here.
        check_version(&document, name, "snapshot.json", entry)?;
        self.check_expiry(name, document.expires_s()?)?;
        let targets = document.targets()?;
        // The documents were valid at this time, so a clock that runs ahead can move the latest time at most to
        // their expiry, and newer documents are valid for longer.
        self.trust.note_time(self.now_s);
        let consistent = self.trusted_root(name)?.consistent;
        Ok(RefreshStep::Done(VerifiedTargets {
            targets,
            version: entry.version,
            expires: UnixSeconds(self.expires_s),
            is_time_known: self.is_time_known,
            consistent,
        }))
    }

    /// What the machine trusts and has seen now. Save it, also after a refusal.
    #[must_use]
    pub fn into_trust(self) -> UpdateTrust {
        self.trust
    }

    /// Ends the refresh. The targets are `None` unless every document was supplied and none was refused.
    #[must_use]
    pub fn finish(self) -> (UpdateTrust, Option<VerifiedTargets>) {
        let targets = match self.step {
            RefreshStep::Done(targets) => Some(targets),
            _ => None,
        };
        (self.trust, targets)
    }

    /// Supplies every file from a source. Save the trust, also beside an error.
    pub fn run(
        mut self,
        source: &mut dyn MetadataSource,
    ) -> (UpdateTrust, Result<VerifiedTargets, UpdateError>) {
        while let Some(wanted) = self.wanted() {
            let supplied = source.metadata(&wanted);
            let supplied = supplied.and_then(|file| self.supply(file.as_deref()));
            // The trust goes beside the error: a root that was verified before revokes stolen keys all the same.
            if let Err(error) = supplied {
                return (self.into_trust(), Err(error));
            }
        }
        let (trust, targets) = self.finish();
        let targets = targets.ok_or_else(|| UpdateError::Missing {
            file: "targets.json".to_owned(),
        });
        (trust, targets)
    }
}

/// What a document says about the document of another role.
pub(crate) fn entry_for(
    document: &SignedDocument,
    name: &str,
    role: TufRole,
) -> Result<MetaEntry, UpdateError> {
    let entry = document.meta()?.remove(&format!("{role}.json"));
    let why = format_args!("it does not name {role}.json");
    entry.ok_or_else(|| UpdateError::malformed(name, why))
}

fn check_rollback(file: &str, seen: u64, offered: u64) -> Result<(), UpdateError> {
    if offered < seen {
        return Err(UpdateError::Rollback {
            file: file.to_owned(),
            seen,
            offered,
        });
    }
    Ok(())
}

pub(crate) fn check_version(
    document: &SignedDocument,
    name: &str,
    named_by: &str,
    entry: &MetaEntry,
) -> Result<(), UpdateError> {
    let found = document.version()?;
    if found != entry.version {
        return Err(UpdateError::VersionMismatch {
            file: name.to_owned(),
            named_by: named_by.to_owned(),
            expected: entry.version,
            found,
        });
    }
    Ok(())
}

fn check_bytes(name: &str, bytes: &[u8], entry: &MetaEntry) -> Result<(), UpdateError> {
    if let Some(expected) = entry
        .bytes
        .filter(|expected| *expected != bytes.len() as u64)
    {
        return Err(UpdateError::Length {
            file: name.to_owned(),
            expected,
        });
    }
    let found: [u8; 32] = Sha256::digest(bytes).into();
    if entry.sha256.is_some_and(|expected| expected != found) {
        return Err(UpdateError::Hash {
            file: name.to_owned(),
        });
    }
    Ok(())
}

/// The kind of a machine, which a target has to fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateMachine {
    /// The processor, as Linux names it.
    pub arch: String,
    /// The board, `generic` on machines with UEFI or BIOS.
    pub board: String,
    /// The form of the image that the machine was installed from.
    pub form: String,
    /// Names that a release may list in [`ReleaseInfo::needs`].
    pub provides: Vec<String>,
}

/// A target that a machine may install.
#[derive(Clone, Copy, Debug)]
pub struct ChosenTarget<'a> {
    /// The file.
    pub target: &'a UpdateTarget,
    /// Its description.
    pub release: &'a ReleaseInfo,
    /// What the release is to the version that runs.
    pub step: UpdateStep,
}

/// The files of a release, all of whose metadata is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedTargets {
    targets: BTreeMap<String, UpdateTarget>,
    version: u64,
    expires: UnixSeconds,
    is_time_known: bool,
    consistent: bool,
}

impl VerifiedTargets {
    /// The files of a document that a person is about to sign. Nothing of it is verified.
    pub(crate) fn described(
        document: &SignedDocument,
        consistent: bool,
    ) -> Result<Self, UpdateError> {
        Ok(Self {
            targets: document.targets()?,
            version: document.version()?,
            expires: UnixSeconds(document.expires_s()?),
            is_time_known: false,
            consistent,
        })
    }

    /// The files, by name.
    pub fn iter(&self) -> impl Iterator<Item = &UpdateTarget> {
        self.targets.values()
    }

    /// The version of the targets document.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// When the first of the documents expires.
    #[must_use]
    pub fn expires(&self) -> UnixSeconds {
        self.expires
    }

    /// Whether the machine knew the time. Without it the metadata may have expired: an automatic update should wait
    /// for a clock, and a person may decide.
    #[must_use]
    pub fn is_time_known(&self) -> bool {
        self.is_time_known
    }

    /// Whether file names of targets begin with their hash.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.consistent
    }

    /// The target with this name.
    ///
    /// # Errors
    /// No such target was signed.
    pub fn target(&self, name: &str) -> Result<&UpdateTarget, UpdateError> {
        self.targets
            .get(name)
            .ok_or_else(|| UpdateError::UnknownTarget {
                target: name.to_owned(),
            })
    }

    /// The target with this name of a file, with or without the hash.
    ///
    /// # Errors
    /// No such target was signed.
    pub fn target_of_file(&self, file: &str) -> Result<&UpdateTarget, UpdateError> {
        let found = self.iter().find(|it| it.file_name(self.consistent) == file);
        found.ok_or_else(|| UpdateError::UnknownTarget {
            target: file.to_owned(),
        })
    }

    /// The newest program for a machine, if the machine may install it.
    ///
    /// # Errors
    /// No program fits the machine, or the version is below the floor or an unasked downgrade, or needs something that the
    /// machine does not know.
    pub fn choose(
        &self,
        machine: &UpdateMachine,
        running: &ReleaseVersion,
        floor: Option<&ReleaseVersion>,
        consent: DowngradeConsent,
    ) -> Result<ChosenTarget<'_>, UpdateError> {
        let described = || {
            let all = self.iter();
            all.filter_map(|target| Some((target, target.release.as_ref()?)))
        };
        let fits = |release: &ReleaseInfo| {
            release.arch == machine.arch
                && release.board == machine.board
                && release.form == machine.form
        };
        let fitting = described().filter(|(_, release)| fits(release));
        let newest = fitting.max_by_key(|(_, release)| &release.version);
        let (target, release) = newest.ok_or_else(|| {
            let offered = described().map(|(_, it)| kind(&it.arch, &it.board, &it.form));
            let offered: Vec<_> = offered.collect();
            UpdateError::OtherMachine {
                wanted: kind(&machine.arch, &machine.board, &machine.form),
                offered: match offered.is_empty() {
                    true => "other files".to_owned(),
                    false => offered.join(" and "),
                },
            }
        })?;
        let step = judge_version(running, &release.version, floor, consent)?;
        let needs = release.needs.iter().map(String::as_str);
        let missing: Vec<_> = needs
            .filter(|need| !machine.provides.iter().any(|it| it == need))
            .collect();
        if !missing.is_empty() {
            return Err(UpdateError::UnmetNeeds {
                version: release.version.clone(),
                missing: missing.join(" and "),
            });
        }
        Ok(ChosenTarget {
            target,
            release,
            step,
        })
    }
}

fn kind(arch: &str, board: &str, form: &str) -> String {
    format!("{arch} {board} ({form})")
}
