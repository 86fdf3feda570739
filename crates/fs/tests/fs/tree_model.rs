//! The tree of files against a plain map: whatever a client does, both hold the same files, also after a restart.

use std::collections::BTreeMap;
use std::path::Path;

use alknet_fs::{
    FileAttributes, FileKind, FileOpening, FileTree, FileTreeError, FsFileTree, FsOpenFile,
    FsRequester, FsService, OpenFile, resolve_path,
};
use alknet_store::{FileStoreOptions, NewBranch, NewBucket};
use bytes::Bytes;
use proptest::prelude::*;

use crate::scene::{hung, identity};

/// Two branches, whose trees are apart.
const TREES: [&str; 2] = ["/docs", "/docs@draft"];
const NAMES: [&str; 7] = ["a", "b", "d", "d/a", "d/b", "e", "e/a"];
/// Below the limit of sessions of an identity, so that the model needs no count of them.
const WRITERS_MAX: usize = 8;
/// Files of a page, few enough that a directory has several pages.
const PAGE: usize = 2;

#[derive(Clone, Debug)]
enum TreeAction {
    Open(String, FileOpening),
    Read(usize, u64, usize),
    Write(usize, u64, Vec<u8>),
    Resize(usize, u64),
    Close(usize),
    Abort(usize),
    ResizeAt(String, u64),
    Stat(String),
    Rename(String, String, bool),
    Copy(String, String),
    MakeDirectory(String),
    RemoveFile(String),
    RemoveDirectory(String),
}

/// A file that the model has open.
struct ModelFile {
    path: String,
    content: Vec<u8>,
    opening: FileOpening,
    is_open: bool,
}

impl ModelFile {
    const fn is_writer(&self) -> bool {
        self.opening.write || self.opening.append
    }

    const fn is_new(&self) -> bool {
        self.opening.create && self.opening.exclusive
    }
}

/// What the tree has to be. Directories have no content. `None` is a refusal.
struct TreeModel {
    nodes: BTreeMap<String, Option<Vec<u8>>>,
    files: Vec<ModelFile>,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn is_within(path: &str, directory: &str) -> bool {
    let rest = path.strip_prefix(directory);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn tree_of(path: &str) -> &str {
    path.split('/').nth(1).unwrap_or_default()
}

fn resized(content: &mut Vec<u8>, size: u64) {
    content.resize(size as usize, 0);
}

impl TreeModel {
    fn new() -> Self {
        let roots = TREES.iter().map(|tree| ((*tree).to_owned(), None));
        Self {
            nodes: roots.collect(),
            files: Vec::new(),
        }
    }

    fn is_directory(&self, path: &str) -> bool {
        matches!(self.nodes.get(path), Some(None))
    }

    fn content(&self, path: &str) -> Option<&Vec<u8>> {
        self.nodes.get(path)?.as_ref()
    }

    fn is_free(&self, path: &str) -> bool {
        !self.nodes.contains_key(path) && self.is_directory(parent(path))
    }

    fn writer_at(&mut self, path: &str) -> Option<&mut ModelFile> {
        let mut files = self.files.iter_mut().rev();
        files.find(|file| file.is_open && file.is_writer() && file.path == path)
    }

    fn writers(&self) -> usize {
        let files = self.files.iter();
        files.filter(|it| it.is_open && it.is_writer()).count()
    }

    fn open(&mut self, path: &str, opening: FileOpening) -> Option<()> {
        let mut file = ModelFile {
            path: path.to_owned(),
            content: self.content(path).cloned().unwrap_or_default(),
            opening,
            is_open: true,
        };
        if !file.is_writer() {
            self.content(path)?;
        } else if file.is_new() {
            (self.is_free(path) && self.writer_at(path).is_none()).then_some(())?;
        } else {
            let may_make = opening.create && self.is_free(path);
            (may_make || self.content(path).is_some()).then_some(())?;
        }
        if opening.truncate && file.is_writer() {
            file.content.clear();
        }
        self.files.push(file);
        Some(())
    }

    fn read(&self, at: usize, offset: u64, length: usize) -> Option<Vec<u8>> {
        let file = self.files.get(at).filter(|file| file.is_open)?;
        (!file.is_writer() || file.opening.read).then_some(())?;
        let start = file.content.len().min(offset as usize);
        let end = file.content.len().min(start + length);
        Some(file.content[start..end].to_vec())
    }

    fn writable(&mut self, at: usize) -> Option<&mut ModelFile> {
        let file = self.files.get_mut(at)?;
        (file.is_open && file.is_writer()).then_some(file)
    }

    fn write(&mut self, at: usize, offset: u64, bytes: &[u8]) -> Option<()> {
        let file = self.writable(at)?;
        let start = match file.opening.append {
            true => file.content.len(),
            false => offset as usize,
        };
        let end = start + bytes.len();
        // A write of nothing leaves the length.
        if !bytes.is_empty() {
            file.content.resize(file.content.len().max(end), 0);
            file.content[start..end].copy_from_slice(bytes);
        }
        Some(())
    }

    fn close(&mut self, at: usize) -> Option<()> {
        let file = self.files.get_mut(at).filter(|file| file.is_open)?;
        file.is_open = false;
        if !file.is_writer() {
            return Some(());
        }
        let (path, content, is_new) = (file.path.clone(), file.content.clone(), file.is_new());
        let is_taken = is_new && self.nodes.contains_key(&path);
        let directory = parent(&path).to_owned();
        let is_below_file = self.content(&directory).is_some();
        (!is_taken && !is_below_file && !self.is_directory(&path)).then_some(())?;
        // The store makes a directory again that was removed meanwhile.
        self.nodes.entry(directory).or_default();
        self.nodes.insert(path, Some(content));
        Some(())
    }

    fn abort(&mut self, at: usize) -> Option<()> {
        let file = self.files.get_mut(at).filter(|file| file.is_open)?;
        file.is_open = false;
        Some(())
    }

    fn resize_at(&mut self, path: &str, size: u64) -> Option<()> {
        if let Some(writer) = self.writer_at(path) {
            resized(&mut writer.content, size);
            return Some(());
        }
        resized(self.nodes.get_mut(path)?.as_mut()?, size);
        Some(())
    }

    /// Kind and length.
    fn stat(&mut self, path: &str) -> Option<(FileKind, u64)> {
        if let Some(writer) = self.writer_at(path) {
            return Some((FileKind::File, writer.content.len() as u64));
        }
        Some(match self.nodes.get(path)? {
            Some(content) => (FileKind::File, content.len() as u64),
            None => (FileKind::Directory, 0),
        })
    }

    fn rename(&mut self, from: &str, to: &str, may_replace: bool) -> Option<()> {
        let moved = self.nodes.get(from)?.clone();
        let mut files = self.files.iter();
        let is_written =
            files.any(|file| file.is_open && file.is_writer() && is_within(&file.path, from));
        let is_one_tree = tree_of(from) == tree_of(to);
        (is_one_tree && !is_written && self.is_directory(parent(to))).then_some(())?;
        if let Some(replaced) = self.nodes.get(to) {
            may_replace.then_some(())?;
            if from == to {
                return Some(());
            }
            let is_empty = !self
                .nodes
                .keys()
                .any(|path| path != to && is_within(path, to));
            (is_empty && replaced.is_some() == moved.is_some()).then_some(())?;
        }
        (!is_within(to, from)).then_some(())?;
        let names: Vec<_> = self.nodes.keys().cloned().collect();
        for name in names.iter().filter(|name| is_within(name, from)) {
            let node = self.nodes.remove(name)?;
            self.nodes.insert(name.replacen(from, to, 1), node);
        }
        Some(())
    }

    fn copy(&mut self, from: &str, to: &str) -> Option<()> {
        let content = self.content(from)?.clone();
        self.is_free(to).then_some(())?;
        self.nodes.insert(to.to_owned(), Some(content));
        Some(())
    }

    fn make_directory(&mut self, path: &str) -> Option<()> {
        self.is_free(path).then_some(())?;
        self.nodes.insert(path.to_owned(), None);
        Some(())
    }

    fn remove_file(&mut self, path: &str) -> Option<()> {
        self.content(path)?;
        self.nodes.remove(path);
        Some(())
    }

    fn remove_directory(&mut self, path: &str) -> Option<()> {
        let mut paths = self.nodes.keys();
        let is_empty = !paths.any(|other| other != path && is_within(other, path));
        (self.is_directory(path) && is_empty).then_some(())?;
        self.nodes.remove(path);
        Some(())
    }
}

/// The tree, its open files, and what both have to be.
struct TreeRun {
    tree: FsFileTree,
    files: Vec<FsOpenFile>,
    model: TreeModel,
}

/// Both did it, with the same result, or both refused it.
#[track_caller]
fn assert_same<T: PartialEq + std::fmt::Debug>(
    action: &TreeAction,
    real: Result<T, FileTreeError>,
    model: Option<T>,
) {
    match (real, model) {
        (Ok(real), Some(model)) => assert_eq!(real, model, "{action:?}"),
        (Err(_), None) => {}
        (real, model) => panic!("{action:?}: {real:?} and not {model:?}"),
    }
}

impl TreeRun {
    async fn act(&mut self, action: &TreeAction) {
        let (tree, model) = (&self.tree, &mut self.model);
        match action {
            TreeAction::Open(path, opening) => {
                if model.writers() < WRITERS_MAX {
                    let opened = tree.open(path, *opening).await;
                    let opened = opened.map(|file| self.files.push(file));
                    assert_same(action, opened, model.open(path, *opening));
                }
            }
            TreeAction::ResizeAt(path, size) => {
                let attributes = FileAttributes {
                    size: Some(*size),
                    ..FileAttributes::default()
                };
                let set = tree.set_attributes(path, attributes).await;
                assert_same(action, set, model.resize_at(path, *size));
            }
            TreeAction::Stat(path) => {
                let stat = tree.stat(path).await.map(|stat| (stat.kind, stat.size));
                assert_same(action, stat, model.stat(path));
            }
            TreeAction::Rename(from, to, may_replace) => {
                let renamed = tree.rename(from, to, *may_replace).await;
                assert_same(action, renamed, model.rename(from, to, *may_replace));
            }
            TreeAction::Copy(from, to) => {
                assert_same(action, tree.copy_file(from, to).await, model.copy(from, to));
            }
            TreeAction::MakeDirectory(path) => {
                let made = tree.make_directory(path, FileAttributes::default()).await;
                assert_same(action, made, model.make_directory(path));
            }
            TreeAction::RemoveFile(path) => {
                assert_same(
                    action,
                    tree.remove_file(path).await,
                    model.remove_file(path),
                );
            }
            TreeAction::RemoveDirectory(path) => {
                let removed = tree.remove_directory(path).await;
                assert_same(action, removed, model.remove_directory(path));
            }
            of_file => self.act_on_file(of_file).await,
        }
    }

    async fn act_on_file(&mut self, action: &TreeAction) {
        let (files, model) = (&self.files, &mut self.model);
        match action {
            TreeAction::Read(at, offset, length) if !files.is_empty() => {
                let at = at % files.len();
                let read = files[at].read_at(*offset, *length).await;
                let read = read.map(|bytes| bytes.to_vec());
                assert_same(action, read, model.read(at, *offset, *length));
            }
            TreeAction::Write(at, offset, bytes) if !files.is_empty() => {
                let at = at % files.len();
                let written = files[at]
                    .write_at(*offset, Bytes::from(bytes.clone()))
                    .await;
                assert_same(action, written, model.write(at, *offset, bytes));
            }
            TreeAction::Resize(at, size) if !files.is_empty() => {
                let at = at % files.len();
                let attributes = FileAttributes {
                    size: Some(*size),
                    ..FileAttributes::default()
                };
                let set = files[at].set_attributes(attributes).await;
                let file = model.writable(at);
                assert_same(action, set, file.map(|it| resized(&mut it.content, *size)));
            }
            TreeAction::Close(at) if !files.is_empty() => {
                let at = at % files.len();
                assert_same(action, files[at].close().await, model.close(at));
            }
            TreeAction::Abort(at) if !files.is_empty() => {
                let at = at % files.len();
                assert_same(action, files[at].abort().await, model.abort(at));
            }
            _ => {}
        }
    }
}

/// Everything in a tree, as the model has it.
async fn all_of(tree: &FsFileTree) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut directories: Vec<String> = TREES.map(str::to_owned).to_vec();
    while let Some(directory) = directories.pop() {
        let mut after: Option<String> = None;
        loop {
            let page = tree.list(&directory, after.as_deref(), PAGE).await;
            let page = page.expect("a directory");
            assert!(page.files.len() <= PAGE);
            for file in &page.files {
                let path = resolve_path(&directory, &file.name);
                if file.stat.kind == FileKind::Directory {
                    directories.push(path);
                } else {
                    found.insert(path.clone(), Some(whole(tree, &path).await));
                }
            }
            after = page.files.last().map(|file| file.name.clone());
            if !page.has_more {
                break;
            }
        }
        found.insert(directory, None);
    }
    found
}

async fn whole(tree: &FsFileTree, path: &str) -> Vec<u8> {
    let file = tree.open(path, FileOpening::reading()).await;
    let file = file.expect("a file");
    let mut content = Vec::new();
    loop {
        let block = file.read_at(content.len() as u64, 1 << 20).await;
        let block = block.expect("bytes");
        if block.is_empty() {
            break;
        }
        content.extend_from_slice(&block);
    }
    content
}

fn service(folder: &Path) -> FsService {
    FsService::new(&folder.join("fs"), FileStoreOptions::default())
}

fn tree_on(service: &FsService) -> FsFileTree {
    let requester = FsRequester::of_identity(identity("ada", &["fs:*"]));
    FsFileTree::new(service.clone(), requester)
}

async fn make_branches(service: &FsService) {
    let lease = service.lease().await.expect("a store");
    let docs = NewBucket::new("docs".parse().expect("a name"), "ada");
    let made = lease.write(move |tx| tx.create_bucket(&docs)).await;
    let (_, main) = made.expect("a bucket");
    let draft = NewBranch::new("draft".parse().expect("a name"), main.id, "ada");
    let made = lease.write(move |tx| tx.create_branch(&draft)).await;
    made.expect("a branch");
}

async fn run(actions: &[TreeAction]) {
    let folder = tempfile::tempdir().expect("writable");
    let first = service(folder.path());
    make_branches(&first).await;
    let mut run = TreeRun {
        tree: tree_on(&first),
        files: Vec::new(),
        model: TreeModel::new(),
    };
    for action in actions {
        run.act(action).await;
    }
    let TreeRun { tree, files, model } = run;
    assert_eq!(all_of(&tree).await, model.nodes);
    // What is open is lost, and nothing else.
    drop((tree, files));
    first.shutdown().await;
    let second = service(folder.path());
    assert_eq!(all_of(&tree_on(&second)).await, model.nodes);
    second.shutdown().await;
}

fn path() -> impl Strategy<Value = String> {
    // Mostly one tree, so that actions meet.
    let tree = prop_oneof![4 => Just(TREES[0]), 1 => Just(TREES[1])];
    (tree, prop::sample::select(&NAMES[..])).prop_map(|(tree, name)| format!("{tree}/{name}"))
}

fn opening() -> impl Strategy<Value = FileOpening> {
    let flag = any::<bool>;
    let rarely = || prop::bool::weighted(0.2);
    let flags = (flag(), flag(), rarely(), flag(), rarely(), rarely());
    flags.prop_map(
        |(read, write, append, create, exclusive, truncate)| FileOpening {
            read,
            write,
            append,
            create,
            exclusive,
            truncate,
            attributes: FileAttributes::default(),
        },
    )
}

/// Also around the length at which a session moves its bytes from memory to a file.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..40_u64, 1 => 65_500..65_600_u64]
}

fn action() -> impl Strategy<Value = TreeAction> {
    let file = || 0..64_usize;
    let bytes = prop::collection::vec(any::<u8>(), 0..20);
    prop_oneof![
        6 => (path(), opening()).prop_map(|(path, opening)| TreeAction::Open(path, opening)),
        4 => (file(), offset(), 0..50_usize)
            .prop_map(|(at, offset, length)| TreeAction::Read(at, offset, length)),
        6 => (file(), offset(), bytes)
            .prop_map(|(at, offset, bytes)| TreeAction::Write(at, offset, bytes)),
        1 => (file(), offset()).prop_map(|(at, size)| TreeAction::Resize(at, size)),
        3 => file().prop_map(TreeAction::Close),
        1 => file().prop_map(TreeAction::Abort),
        1 => (path(), offset()).prop_map(|(path, size)| TreeAction::ResizeAt(path, size)),
        2 => path().prop_map(TreeAction::Stat),
        2 => (path(), path(), any::<bool>())
            .prop_map(|(from, to, may_replace)| TreeAction::Rename(from, to, may_replace)),
        1 => (path(), path()).prop_map(|(from, to)| TreeAction::Copy(from, to)),
        2 => path().prop_map(TreeAction::MakeDirectory),
        1 => path().prop_map(TreeAction::RemoveFile),
        1 => path().prop_map(TreeAction::RemoveDirectory),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_tree_holds_what_a_map_would_hold(actions in prop::collection::vec(action(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let all = async { tokio::time::timeout(hung(), run(&actions)).await };
        runtime.expect("a runtime").block_on(all).expect("it hangs");
    }
}
