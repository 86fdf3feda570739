//! Addresses of files on a node, as words of a command.

use std::fmt;

use clap::Args;

use crate::cli::CommandError;
use crate::cli::target::NodeArgs;

/// What every address has. No key, no host and no name of a node contains it.
const SIGN: &str = ":/";
/// What leads to the snapshots of a bucket, in the place of the first name of a path.
const SNAPSHOTS: &str = "/.snap/";
/// The branch of an address that names none.
const MAIN: &str = "main";
/// The form of an address, for errors.
pub(super) const FORM: &str = "BUCKET[@BRANCH][#SEQ]:/PATH, such as docs:/2026/report.txt";

/// An address `BUCKET[@BRANCH][#SEQ]:/PATH`. This only separates its parts: the node checks their rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FilesAddress {
    /// The bucket, the branch and the commit.
    tree: String,
    /// With a slash in front, and none at the end unless it is the root.
    path: String,
    has_last_slash: bool,
}

impl FilesAddress {
    /// Reads an address. A slash at its end stands for "into this directory".
    ///
    /// # Errors
    /// The text is no address.
    pub(super) fn read(text: &str) -> Result<Self, CommandError> {
        let parts = text.split_once(SIGN).filter(|(tree, _)| !tree.is_empty());
        let (tree, below) = parts.ok_or_else(|| {
            CommandError::usage(format!("'{text}' is no address of a file: write {FORM}"))
        })?;
        let trimmed = below.strip_suffix('/').unwrap_or(below);
        Ok(Self {
            tree: tree.to_owned(),
            path: format!("/{trimmed}"),
            has_last_slash: below.is_empty() || below.ends_with('/'),
        })
    }

    /// The name of the bucket.
    pub(super) fn bucket(&self) -> &str {
        self.tree.split(['@', '#']).next().unwrap_or_default()
    }

    /// The names of the bucket and of the branch.
    pub(super) fn branch(&self) -> (&str, &str) {
        let tree = self.tree.split('#').next().unwrap_or_default();
        tree.split_once('@').unwrap_or((tree, MAIN))
    }

    /// The number of the commit, if the address names one.
    pub(super) fn seq(&self) -> Option<u64> {
        self.tree.split_once('#')?.1.parse().ok()
    }

    /// The path of the entry in its version: that of a snapshot without the name of the snapshot.
    pub(super) fn entry_path(&self) -> &str {
        let Some(below) = self.path.strip_prefix(SNAPSHOTS) else {
            return &self.path;
        };
        below.find('/').map_or("/", |at| &below[at..])
    }

    /// The last name of the path. The root has no name.
    pub(super) fn name(&self) -> Option<&str> {
        let name = self.path.rsplit('/').next();
        name.filter(|name| !name.is_empty())
    }

    /// Whether it was written as a directory into which something goes under its own name.
    pub(super) const fn is_into(&self) -> bool {
        self.has_last_slash
    }

    /// The address of an entry in this directory.
    pub(super) fn join(&self, name: &str) -> Self {
        let path = match self.path.as_str() {
            "/" => format!("/{name}"),
            path => format!("{path}/{name}"),
        };
        Self {
            tree: self.tree.clone(),
            path,
            has_last_slash: false,
        }
    }

    /// This address, or, if it was written with a slash at its end, that of an entry of this name in it.
    pub(super) fn for_entry(&self, name: &str) -> Self {
        match self.is_into() {
            true => self.join(name),
            false => self.clone(),
        }
    }
}

impl fmt::Display for FilesAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.tree, self.path)
    }
}

/// Whether a word is an address of files, and so no node.
pub(super) fn is_address(word: &str) -> bool {
    word.contains(SIGN)
}

/// NODE, which may be left out, and addresses on it.
#[derive(Debug, Args)]
pub(crate) struct FilesArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The address: BUCKET:/PATH, BUCKET@BRANCH:/PATH on another branch, or BUCKET#SEQ:/PATH as it was after a commit.
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<String>,
}

impl FilesArgs {
    /// The node, and the addresses: a first word that is an address is no node.
    ///
    /// # Errors
    /// A word behind the node is no address.
    pub(super) fn arranged(mut self) -> Result<(NodeArgs, Vec<FilesAddress>), CommandError> {
        let first = self.node.node.take_if(|word| is_address(word));
        let words = first.into_iter().chain(self.addresses);
        let found = words.map(|word| FilesAddress::read(&word));
        let found = found.collect::<Result<Vec<_>, _>>()?;
        if found.is_empty() {
            self.node.meant = self.node.node.as_deref().map(hint_of_bucket);
        }
        Ok((self.node, found))
    }

    /// The same with one address or more.
    ///
    /// # Errors
    /// The command has no address, or the errors of [`arranged`](Self::arranged).
    pub(super) fn required(self) -> Result<(NodeArgs, Vec<FilesAddress>), CommandError> {
        let (node, found) = self.arranged()?;
        match found.is_empty() {
            true => Err(missing_address(&node)),
            false => Ok((node, found)),
        }
    }

    /// The same with exactly one address.
    ///
    /// # Errors
    /// There is another number, or the errors of [`arranged`](Self::arranged).
    pub(super) fn single(self) -> Result<(NodeArgs, FilesAddress), CommandError> {
        let (node, found) = self.required()?;
        match <[FilesAddress; 1]>::try_from(found) {
            Ok([address]) => Ok((node, address)),
            Err(found) => Err(CommandError::usage(format!(
                "'{}' is one ADDRESS too many",
                found[1]
            ))),
        }
    }

    /// The same with a source and a target.
    ///
    /// # Errors
    /// There is another number, or the errors of [`arranged`](Self::arranged).
    pub(super) fn pair(self) -> Result<(NodeArgs, [FilesAddress; 2]), CommandError> {
        let (node, found) = self.required()?;
        match <[FilesAddress; 2]>::try_from(found) {
            Ok(both) => Ok((node, both)),
            Err(found) => {
                let text = match found.as_slice() {
                    [one] => format!("the second ADDRESS is missing: where does {one} go?"),
                    _ => format!("two addresses are needed, and there are {}", found.len()),
                };
                Err(CommandError::usage(text))
            }
        }
    }
}

/// The error of a command without an address. Its only word was taken for the node.
fn missing_address(node: &NodeArgs) -> CommandError {
    let behind = match &node.node {
        Some(word) => format!(" behind '{word}', which was taken for the NODE"),
        None => String::new(),
    };
    CommandError::usage(format!("ADDRESS is missing{behind}: write {FORM}"))
}

/// What a user may have meant by a single word that is no node.
fn hint_of_bucket(word: &str) -> String {
    format!("an address of files has ':/': did you mean '{word}:/'?")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::CommandExit;

    #[derive(Parser)]
    struct AddressTestCli {
        #[command(flatten)]
        files: FilesArgs,
    }

    fn args(line: &str) -> FilesArgs {
        let words = std::iter::once("fs").chain(line.split_whitespace());
        AddressTestCli::try_parse_from(words).expect(line).files
    }

    #[test]
    fn an_address_is_no_node() {
        let key = "ed25519:00@192.0.2.7:443";
        let at_key = format!("{key} docs:/a");
        let cases: [(&str, Option<&str>, &[&str]); 7] = [
            ("", None, &[]),
            ("attic", Some("attic"), &[]),
            ("docs:/", None, &["docs:/"]),
            (
                "docs@draft#3:/a b@c:/d",
                None,
                &["docs@draft#3:/a", "b@c:/d"],
            ),
            ("attic docs:/a", Some("attic"), &["docs:/a"]),
            ("kitchen@attic docs:/a", Some("kitchen@attic"), &["docs:/a"]),
            (&at_key, Some(key), &["docs:/a"]),
        ];
        for (line, node, expected) in cases {
            let (found, addresses) = args(line).arranged().expect(line);
            assert_eq!(found.node.as_deref(), node, "{line}");
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            assert_eq!(addresses, expected, "{line}");
        }
        for line in ["docs:/a attic", "attic docs", "attic :/a"] {
            let refused = args(line).arranged().expect_err(line);
            assert_eq!(refused.exit, CommandExit::Usage, "{line}");
        }
    }

    #[test]
    fn a_command_says_which_address_is_missing() {
        let said = args("attic").required().expect_err("no address").message;
        assert!(said.contains("behind 'attic'"), "{said}");
        let said = args("docs:/a").pair().expect_err("one").message;
        assert!(said.contains("where does docs:/a go"), "{said}");
        assert!(args("docs:/a docs:/b").single().is_err());
        assert!(args("attic docs:/a docs:/b").pair().is_ok());
    }

    #[test]
    fn an_address_has_its_parts() {
        let address = |text: &str| FilesAddress::read(text).expect(text);
        let one = address("docs@draft#7:/2026/a:/b");
        assert_eq!((one.bucket(), one.name()), ("docs", Some("b")));
        assert_eq!(one.branch(), ("docs", "draft"));
        assert_eq!((one.seq(), address("docs:/a").seq()), (Some(7), None));
        assert_eq!(address("docs#7:/a").branch(), ("docs", "main"));
        assert_eq!(one.entry_path(), "/2026/a:/b");
        assert!(!one.is_into());
        let root = address("docs:/");
        assert_eq!((root.name(), root.entry_path()), (None, "/"));
        assert_eq!(root.for_entry("a").to_string(), "docs:/a");
        let folder = address("docs:/2026/");
        assert_eq!(folder.to_string(), "docs:/2026");
        assert_eq!(folder.for_entry("a").to_string(), "docs:/2026/a");
        assert_eq!(address("docs:/b").for_entry("a").to_string(), "docs:/b");
        for (text, path) in [
            ("docs:/.snap/monday", "/"),
            ("docs:/.snap/monday/", "/"),
            ("docs:/.snap/monday/a/b", "/a/b"),
            ("docs:/.snapshot/a", "/.snapshot/a"),
        ] {
            assert_eq!(address(text).entry_path(), path, "{text}");
        }
    }
}
