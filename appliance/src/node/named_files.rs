//! Finds files that a configuration names and that do not exist.

use std::error::Error;
use std::io;
use std::path::Path;

use alknet_core::config::{ConfigError, NodeConfig, StoredFileName};
use alknet_openapi::read_document;

/// Hint for a file that does not exist.
const FIX: &str = "put it there, or correct its path; 'alknet config check --no-files' checks a document for \
                   another machine";

/// What a path of the document has to lead to.
#[derive(Clone, Copy)]
enum PathKind {
    File,
    Folder,
}

/// The files that `config` names and this machine does not have, each with its key and path.
/// `folder` is that of the document, for paths that begin with `cfg:/`. Without a folder those
/// paths are not checked. Stored files are not checked: only their node has them, and that node
/// reports missing ones when the document is applied.
///
/// For certificates and sites it does not check whether this process may read them: the node may
/// run as another user.
pub(crate) fn missing(config: &NodeConfig, folder: Option<&Path>) -> Vec<ConfigError> {
    let tls = &config.tls;
    let pairs = tls.files.iter().enumerate().flat_map(|(n, pair)| {
        let key = |name: &str| format!("tls.files[{n}].{name}");
        [(key("chain"), &pair.chain), (key("key"), &pair.key)]
    });
    let alone = [
        ("tls.roots", &tls.roots),
        ("tls.acme.ca_file", &tls.acme.ca_file),
    ];
    let alone = alone
        .into_iter()
        .filter_map(|(key, path)| Some((key.to_owned(), path.as_ref()?)));
    let files = alone.chain(pairs).map(|it| (it, PathKind::File));
    let site = config.http.site.iter();
    let site = site.map(|path| (("http.site".to_owned(), path), PathKind::Folder));
    let named = files.chain(site);
    // A stored file is on the node, and this may be another machine.
    let named = named.filter(|((_, path), _)| StoredFileName::referred_to(path).is_none());
    let named = named.filter_map(|((key, path), kind)| absent(key, Path::new(path), kind));
    let documents = folder.into_iter().flat_map(|it| documents(config, it));
    named.chain(documents).collect()
}

/// Missing documents of imports beside the configuration. The node reads them as the user that runs
/// it, and a check does as well.
fn documents<'a>(
    config: &'a NodeConfig,
    folder: &'a Path,
) -> impl Iterator<Item = ConfigError> + 'a {
    let imports = config.http.import.iter().enumerate();
    imports.filter_map(move |(n, import)| {
        let name = import.document_path()?;
        let error = read_document(folder, name).err()?;
        let path = folder.join(name);
        // The error's own text repeats the name without its folder.
        let why = Error::source(&error).map(ToString::to_string);
        let why = why.unwrap_or_else(|| error.to_string());
        Some(problem(
            format!("http.import[{n}].document"),
            format!("{}: {why}", path.display()),
        ))
    })
}

fn absent(key: String, path: &Path, kind: PathKind) -> Option<ConfigError> {
    let what = match path.metadata() {
        Ok(found) => match kind {
            PathKind::File if !found.is_file() => "it is no file".to_owned(),
            PathKind::Folder if !found.is_dir() => "it is no folder".to_owned(),
            PathKind::File | PathKind::Folder => return None,
        },
        // A folder above the file may be closed to this user and open to the node's.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
        Err(error) => error.to_string(),
    };
    Some(problem(key, format!("{}: {what}", path.display())))
}

fn problem(path: String, what: String) -> ConfigError {
    ConfigError {
        path,
        line: None,
        what,
        fix: FIX.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A document that names a file of each kind below `folder`.
    fn document(folder: &Path) -> NodeConfig {
        let at = |name: &str| folder.join(name).display().to_string();
        let text = format!(
            "[tls]\nroots = {:?}\nfiles = [{{ chain = {:?}, key = {:?} }}]\nacme.ca_file = {:?}\n\
             [http]\nsite = {:?}\n[[http.import]]\nkind = \"openapi\"\nnamespace = \"forge\"\n\
             document = \"cfg:/forge.yaml\"\nbase_url = \"https://forge.example\"\n",
            at("roots.pem"),
            at("chain.pem"),
            at("key.pem"),
            at("authority.pem"),
            at("www"),
        );
        NodeConfig::parse(text.as_bytes()).expect("a correct document")
    }

    #[test]
    fn each_missing_file_is_named_with_its_key_and_its_path() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = document(dir.path());
        let errors = missing(&config, Some(dir.path()));
        let named: Vec<_> = errors.iter().map(|it| it.path.as_str()).collect();
        let keys = [
            "tls.roots",
            "tls.acme.ca_file",
            "tls.files[0].chain",
            "tls.files[0].key",
            "http.site",
            "http.import[0].document",
        ];
        assert_eq!(named, keys);
        let names = [
            "roots.pem",
            "authority.pem",
            "chain.pem",
            "key.pem",
            "www",
            "forge.yaml",
        ];
        for (error, name) in errors.iter().zip(names) {
            let path = dir.path().join(name).display().to_string();
            assert!(error.what.contains(&path), "{path}: {error}");
        }
    }

    #[test]
    fn files_that_are_there_are_no_mistake() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = document(dir.path());
        let names = [
            "roots.pem",
            "authority.pem",
            "chain.pem",
            "key.pem",
            "forge.yaml",
        ];
        for name in names {
            fs::write(dir.path().join(name), "x").expect("a writable directory");
        }
        fs::create_dir(dir.path().join("www")).expect("a writable directory");
        assert_eq!(missing(&config, Some(dir.path())), []);
    }

    /// The node has the stored files, and this may be another machine.
    #[test]
    fn stored_files_are_not_looked_for() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let text = "[tls]\nroots = \"store:/root/lab\"\nfiles = [{ chain = \"store:/certificate/edge\" }]\n\
                    [http]\nsite = \"store:/site/www\"\n[[http.import]]\nkind = \"openapi\"\n\
                    namespace = \"forge\"\ndocument = \"store:/document/forge\"\n\
                    base_url = \"https://forge.example\"\n";
        let config = NodeConfig::parse(text.as_bytes()).expect("a correct document");
        assert_eq!(missing(&config, Some(dir.path())), []);
    }

    #[test]
    fn a_file_in_the_place_of_a_folder_is_a_mistake() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("roots.pem")).expect("a writable directory");
        fs::write(dir.path().join("www"), "x").expect("a writable directory");
        let errors = missing(&document(dir.path()), None);
        let said = |key: &str| {
            let error = errors.iter().find(|it| it.path == key);
            error.map(|it| it.what.clone()).unwrap_or_default()
        };
        assert!(said("tls.roots").ends_with("it is no file"));
        assert!(said("http.site").ends_with("it is no folder"));
        // The folder of the document is unknown.
        assert_eq!(said("http.import[0].document"), "");
    }
}
