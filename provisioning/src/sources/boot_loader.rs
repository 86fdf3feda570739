//! The kernel's command line. An attacker who can edit it owns a machine whose image is not signed.
//! A machine that starts only signed images does not read it.

use super::parts::assemble;
use super::{SourceContents, unreadable};
use crate::{ConfigOrigin, SourceDiagnostic, SourcePaths, file};

/// Most bytes of the command line that are read. x86 allows 2048.
const COMMAND_LINE_BYTES_MAX: usize = 16 << 10;
/// The variable of the UEFI specification (3.3) that says whether signatures are enforced.
const SECURE_BOOT: &str = "efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

const HINT: &str = "correct alknet.node in the boot loader's configuration (docs/provisioning.md)";

pub(super) fn find(
    paths: &SourcePaths,
    problems: &mut Vec<SourceDiagnostic>,
) -> Option<SourceContents> {
    let bytes = match file::read_bounded(&paths.command_line, COMMAND_LINE_BYTES_MAX) {
        Ok(bytes) => bytes?,
        Err(error) => {
            problems.push(unreadable(&ConfigOrigin::CommandLine, error, HINT));
            return None;
        }
    };
    // A line that is not UTF-8 contains no document. The kernel's own words are not checked here.
    let line = std::str::from_utf8(&bytes).unwrap_or_default();
    let words = || line.split_ascii_whitespace();
    match assemble(words()) {
        Ok(None) => None,
        Ok(Some(document)) => match signed(paths, words()) {
            None => Some(SourceContents::document(
                ConfigOrigin::CommandLine,
                document,
            )),
            Some(why) => {
                problems.push(SourceDiagnostic::new(
                    "provisioning-ignored",
                    format!(
                        "{}: alknet.node is not read, since {why}",
                        ConfigOrigin::CommandLine
                    ),
                    "provision the node by another way (docs/provisioning.md)",
                ));
                None
            }
        },
        Err(error) => {
            problems.push(unreadable(&ConfigOrigin::CommandLine, error, HINT));
            None
        }
    }
}

/// Why the command line is not used, if it is not.
fn signed<'a>(
    paths: &SourcePaths,
    mut words: impl Iterator<Item = &'a str>,
) -> Option<&'static str> {
    // A locked kernel trusts only what was signed, and the command line is not signed.
    if words.any(|word| word == "lockdown=confidentiality") {
        return Some("the kernel is locked down");
    }
    if !paths.efi.exists() {
        return None;
    }
    // Four bytes of attributes, then the value.
    match file::read_bounded(&paths.efi.join(SECURE_BOOT), 16) {
        Ok(Some(variable)) if variable.get(4) == Some(&0) => None,
        Ok(Some(variable)) if variable.len() == 5 => Some("Secure Boot is on"),
        // Firmware without the variable has no Secure Boot, but if no variables can be read at all,
        // nothing is known.
        Ok(None)
            if paths
                .efi
                .join("efivars")
                .read_dir()
                .is_ok_and(|mut it| it.next().is_some()) =>
        {
            None
        }
        // If the state is unknown, the line may be an attacker's.
        _ => Some("it is unknown whether Secure Boot is on"),
    }
}
