//! Why a request about updates is refused: the codes, with what the page about updates says of each.

/// The class of the error by which the node answers a request that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// It is about the state of the machine, such as a full disk or another update that is under way.
    Conflict,
    /// It is about who may bring or start the version: its signatures, its age, its number, and what its start needs.
    Forbidden,
    /// A part of PID 1 failed.
    Internal,
    /// It is about the bytes of the bundle, or the machine that it is for.
    InvalidInput,
}

impl RefusalKind {
    /// The name of the error, as clients of the node see it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Conflict => "CONFLICT",
            Self::Forbidden => "FORBIDDEN",
            Self::Internal => "INTERNAL",
            Self::InvalidInput => "INVALID_INPUT",
        }
    }
}

/// Declares each code once: its variant, its name, the class of its error, what is wrong, and what to do. PID 1, the
/// node and the test of the page read this one list, so no code lacks a part. Both texts are those of the page.
macro_rules! refusal_codes {
    ($($variant:ident, $name:literal, $kind:ident, $text:literal, $hint:literal;)+) => {
        /// The stable name of a refusal by PID 1, or by the node in its place. `docs/update.md` lists all of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum RefusalCode {
            $(#[doc = $text] $variant,)+
        }

        impl RefusalCode {
            /// Every code, in the order of the names.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name, which never changes.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The class of the error.
            #[must_use]
            pub const fn kind(self) -> RefusalKind {
                match self {
                    $(Self::$variant => RefusalKind::$kind,)+
                }
            }

            /// What is wrong, in any refusal with this code. The text of a refusal says more.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// What to do.
            #[must_use]
            pub const fn hint(self) -> &'static str {
                match self {
                    $(Self::$variant => $hint,)+
                }
            }
        }
    };
}

refusal_codes! {
    Aborted, "aborted", Conflict,
        "the sender gave the upload up, or a person at the console needed the media",
        "send the bundle again";
    BelowFloor, "below-floor", Forbidden,
        "the version is older than the floor: a confirmed version has forbidden it for good",
        "take a newer version";
    Busy, "busy", Conflict,
        "another request about updates is under way, or the vault is being changed, or the machine goes down",
        "wait for the request that is under way";
    Delta, "delta", InvalidInput,
        "the delta is damaged, passes a limit, or makes another program",
        "send the bundle with the whole program";
    Disk, "disk", Conflict,
        "the disk cannot be read or written, or did not keep what was written",
        "check the disk, or replace it";
    Downgrade, "downgrade", Forbidden,
        "the version is older than the one that runs, and no administrator named it",
        "name the older version by `--downgrade`";
    Expired, "expired", Forbidden,
        "a document has expired",
        "if the text names `timestamp.json`, [renew it](image.md#renew-the-timestamp) (`alknet image renew`); \
         otherwise make the release or the root again; or set the clock of the machine";
    Failed, "failed", Internal,
        "a part of PID 1 panicked",
        "report the defect, with the log";
    FloorRaised, "floor-raised", Conflict,
        "the staged version raises the floor further than the caller of the start agreed to: a caller has staged \
         the same program with a higher floor",
        "look at the plan again, and start the version again: `alknet update` shows the plan and asks. \
         `alknet update log` names the caller that brought the floor, in a record `noted`, or `staged` if the program came \
         with it";
    Full, "full", Conflict,
        "the boot partition has too little room",
        "remove [files of others](#files-of-others) from the boot partition";
    Hash, "hash", InvalidInput,
        "a document or the program has other bytes than the signed ones",
        "send the bundle again";
    Left, "left", Forbidden,
        "the version failed or was left, and the caller is the machine itself or a hub",
        "an administrator installs the version by `alknet update`";
    Locked, "locked", Conflict,
        "the vault has to be open",
        "open the vault";
    Malformed, "malformed", InvalidInput,
        "the file is not a bundle, or has no program that boots, or its program is not what its release says",
        "send the file that `alknet image bundle` wrote";
    NeedsPerson, "needs-person", Forbidden,
        "the start needs a person at the machine, and the caller is the machine itself or a hub",
        "start the version by `alknet update` when a person is at the machine";
    NoKeys, "no-keys", Forbidden,
        "the machine has no key that could have signed an update",
        "write `update.keys` into the configuration";
    NoPrevious, "no-previous", Conflict,
        "there is no version to return to",
        "send the bundle of the older version, and name the version by `--downgrade`";
    NoSlots, "no-slots", Conflict,
        "the machine has no boot slots, or was not started from one",
        "replace the form [by hand](#other-forms)";
    NotOnTrial, "not-on-trial", Conflict,
        "no version is on trial, or another one runs",
        "nothing";
    NotStaged, "not-staged", Conflict,
        "no version is staged",
        "stage a version first";
    OnTrial, "on-trial", Conflict,
        "a version is on trial",
        "wait for the trial, or end it by `alknet rollback`";
    OtherBase, "other-base", Conflict,
        "the delta starts from another program than the one that runs",
        "send the bundle with the whole program";
    OtherChannel, "other-channel", Forbidden,
        "the version has a pre-release part, such as `1.4.0-beta.1`, the machine follows `stable`, and the caller \
         is the machine itself or a hub",
        "an administrator installs the version by `alknet update`, or names the channel `beta` in the \
         configuration";
    OtherLibrary, "other-library", Conflict,
        "another version of the compressing library made the program of the delta",
        "send the bundle with the whole program";
    OtherMachine, "other-machine", InvalidInput,
        "the bundle has no program for this machine",
        "send a bundle for this machine";
    OtherStaged, "other-staged", Conflict,
        "another program was staged meanwhile than the one that was to start; or the machine itself or a hub brings a \
         version, and another one waits for the caller that staged it",
        "look at the other version, and start it or take it back";
    OutsideWindow, "outside-window", Conflict,
        "a hub starts the version outside of `update.window` of this machine, or while the machine does not know \
         the time",
        "update again within the window; or an administrator starts the version at any time";
    Rollback, "rollback", Forbidden,
        "the metadata is older than metadata that this machine has seen",
        "take a newer bundle";
    RunsAlready, "runs-already", Conflict,
        "the program runs already",
        "nothing";
    Signature, "signature", Forbidden,
        "no signature is valid and of a key that this machine trusts",
        "sign with the keys that this machine trusts";
    Silent, "silent", Conflict,
        "the sender sent nothing of the bundle for too long",
        "send the bundle again";
    SlotDamaged, "slot-damaged", Conflict,
        "a program on the boot partition is damaged",
        "do what the text says: it names the damaged program. A [check](storage.md) reads both slots once a day. \
         With `auto = \"apply\"` the machine stages its own version again [by itself](#by-itself)";
    StateLost, "state-lost", Conflict,
        "the boot state record cannot be read",
        "restart the machine, which writes a new record";
    Threshold, "threshold", Forbidden,
        "fewer keys have signed than have to",
        "let more keys sign";
    TooLarge, "too-large", InvalidInput,
        "the bundle or a file in it is too large",
        "stay within the [limits](update-inside.md#limits) of a bundle";
    TooOften, "too-often", Conflict,
        "the caller does not have the scope `admin`, and has started too many versions within an hour",
        "wait an hour, or let an administrator start the version";
    Truncated, "truncated", InvalidInput,
        "the bundle ended early",
        "send the whole file";
    TrustDamaged, "trust-damaged", Conflict,
        "`trust.json` is damaged, or of a newer format",
        "the text says which file is damaged";
    UnmetNeeds, "unmet-needs", InvalidInput,
        "the version [needs something](update-inside.md#what-a-release-needs) that the machine lacks or does not \
         know; the text names it",
        "make a [backup](backup.md), write a newer image to the disk of the machine, and restore the backup";
    Unpredictable, "unpredictable", Conflict,
        "the TPM would not open the vault for the next version",
        "add a passphrase to the vault, and type it after the restart ([TPM](tpm.md#updates))";
    Unverified, "unverified", Forbidden,
        "the program in the slot is not one that this machine verified, or ran at its first start; or it is \
         staged, and the data disk has lost its release with the floor",
        "stage the version from a bundle. With `auto = \"apply\"` the machine stages its own version again [by \
         itself](#by-itself)";
}

impl RefusalCode {
    /// The code with this name. `None` for one of another version.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client decides by the code, and a person reads the page.
    #[test]
    fn the_page_has_the_row_of_each_code_and_no_other_row() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/update.md");
        let page = std::fs::read_to_string(page).expect("the page exists");
        let mut sections = page.split("\n## ");
        let section = sections.find(|it| it.starts_with("What the machine refuses\n"));
        let rows = section.expect("the section").lines();
        let rows: Vec<_> = rows.filter(|row| row.starts_with("| `")).collect();
        let declared = RefusalCode::ALL.iter().map(|code| {
            let (name, error) = (code.name(), code.kind().name());
            format!(
                "| `{name}` | `{error}` | {} | {} |",
                code.text(),
                code.hint()
            )
        });
        assert_eq!(rows, declared.collect::<Vec<_>>());
    }

    #[test]
    fn a_code_is_found_by_its_name() {
        for code in RefusalCode::ALL {
            assert_eq!(RefusalCode::from_name(code.name()), Some(*code));
        }
        assert!(RefusalCode::ALL.is_sorted_by_key(|code| code.name()));
        assert_eq!(RefusalCode::from_name("a-code-of-a-later-version"), None);
    }
}
