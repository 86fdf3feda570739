//! The tree of files for protocols with open files: rights, locks, quotas, versions, and what others see meanwhile.

use std::time::Duration;

use alknet_fs::{
    FileAttributes, FileKind, FileOpening, FileTree, FileTreeError, FsFileTree, FsRequester,
    FsService, OpenFile,
};
use alknet_store::{BranchName, BucketSettings, FileStoreOptions, LockDepth, NewBucket, NewLock};
use bytes::Bytes;
use futures_util::future::join_all;
use tempfile::TempDir;

use crate::scene::identity;

const OLD: &[u8] = b"the old content";

/// A node with a bucket `docs` that has one file, `/a`.
struct TreeNode {
    service: FsService,
    /// A client with every right.
    tree: FsFileTree,
    _folder: TempDir,
}

impl TreeNode {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("writable");
        let service = FsService::new(&folder.path().join("fs"), FileStoreOptions::default());
        let node = Self {
            tree: tree_of(&service, "root", &["fs:*"]),
            service,
            _folder: folder,
        };
        node.make_bucket("docs").await;
        node.write("/docs/a", OLD).await;
        node
    }

    async fn make_bucket(&self, name: &str) {
        let new = NewBucket::new(name.parse().expect("a name"), "root");
        let lease = self.service.lease().await.expect("a store");
        let made = lease.write(move |tx| tx.create_bucket(&new)).await;
        made.expect("a bucket");
    }

    fn client(&self, name: &str, scopes: &[&str]) -> FsFileTree {
        tree_of(&self.service, name, scopes)
    }

    async fn write(&self, path: &str, content: &'static [u8]) {
        let file = self.tree.open(path, FileOpening::writing()).await;
        let file = file.expect("it may write");
        let written = file.write_at(0, Bytes::from_static(content)).await;
        written.expect("a write");
        file.close().await.expect("a file");
    }
}

fn tree_of(service: &FsService, name: &str, scopes: &[&str]) -> FsFileTree {
    FsFileTree::new(service.clone(), requester(name, scopes))
}

fn requester(name: &str, scopes: &[&str]) -> FsRequester {
    FsRequester::of_identity(identity(name, scopes))
}

async fn content(tree: &FsFileTree, path: &str) -> Result<Bytes, FileTreeError> {
    let file = tree.open(path, FileOpening::reading()).await?;
    file.read_at(0, 1 << 20).await
}

async fn names(tree: &FsFileTree, path: &str) -> Vec<String> {
    let page = tree.list(path, None, 100).await.expect("a directory");
    page.files.into_iter().map(|file| file.name).collect()
}

#[track_caller]
fn status<T: std::fmt::Debug>(refused: Result<T, FileTreeError>) -> u32 {
    refused.expect_err("it is refused").sftp_status()
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_come_in_any_order_and_readers_see_them_at_the_close() {
    const PIECE: usize = 10_000;
    let node = TreeNode::new().await;
    let other = node.client("ada", &["fs:read:docs"]);
    let before = other.open("/docs/a", FileOpening::reading()).await;
    let before = before.expect("it may read");
    let whole: Vec<u8> = (0..64 * PIECE).map(|at| (at % 251) as u8).collect();
    let file = node.tree.open("/docs/a", FileOpening::writing()).await;
    let file = file.expect("it may write");
    // As a client has them under way: each third first, then the rest.
    let order = (0..64).step_by(3).chain((0..64).filter(|at| at % 3 != 0));
    let writes = order.map(|at| {
        let piece = Bytes::copy_from_slice(&whole[at * PIECE..(at + 1) * PIECE]);
        file.write_at((at * PIECE) as u64, piece)
    });
    for written in join_all(writes).await {
        written.expect("a write");
    }
    assert_eq!(content(&other, "/docs/a").await, Ok(OLD.into()));
    file.close().await.expect("a file");
    assert_eq!(status(file.write_at(0, Bytes::from_static(b"x")).await), 4);
    assert_eq!(status(file.close().await), 4);
    let after = content(&other, "/docs/a").await.expect("it may read");
    // One read has as much as a piece of a session.
    assert_eq!(after, whole[..other.limits().read_bytes_max]);
    let file = other.open("/docs/a", FileOpening::reading()).await;
    let file = file.expect("it may read");
    let reads = (0..64).map(|at| file.read_at((at * PIECE) as u64, PIECE));
    let read = join_all(reads)
        .await
        .into_iter()
        .map(|it| it.expect("bytes"));
    assert_eq!(read.collect::<Vec<_>>().concat(), whole);
    assert_eq!(file.read_at(whole.len() as u64, 1).await, Ok(Bytes::new()));
    // The version that was opened stays whole.
    assert_eq!(before.read_at(0, 100).await, Ok(OLD.into()));
    let stat = other.stat("/docs/a").await.expect("a file");
    let hash = blake3::hash(&whole).to_hex().to_string();
    assert_eq!(stat.hash.map(|it| it.to_string()), Some(hash));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_not_closed_leaves_the_old_one() {
    let node = TreeNode::new().await;
    for path in ["/docs/a", "/docs/new"] {
        let file = node.tree.open(path, FileOpening::writing()).await;
        let file = file.expect("it may write");
        let written = file.write_at(0, Bytes::from_static(b"half")).await;
        written.expect("a write");
        // The client that made it sees it: some ask for it at once.
        let own = node.tree.stat(path).await.expect("its own file");
        assert_eq!((own.kind, own.size, own.hash), (FileKind::File, 4, None));
        let other = node.client("ada", &["fs:read:docs"]);
        assert!(other.stat(path).await.is_ok_and(|it| it.size == 15) || path == "/docs/new");
        drop(file);
    }
    assert_eq!(content(&node.tree, "/docs/a").await, Ok(OLD.into()));
    assert_eq!(status(node.tree.stat("/docs/new").await), 2);
    // The drop ends the session in the background; otherwise the limit of open sessions would be reached.
    let sessions = async {
        let lease = node.service.lease().await.expect("a store");
        while lease.sessions().count() > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let ended = tokio::time::timeout(crate::scene::hung(), sessions).await;
    ended.expect("a session stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_does_what_its_scopes_say() {
    let node = TreeNode::new().await;
    node.make_bucket("logs").await;
    let reader = node.client("ada", &["fs:read:docs"]);
    assert_eq!(names(&node.tree, "/").await, ["docs", "logs"]);
    assert_eq!(names(&reader, "/").await, ["docs"]);
    assert_eq!(content(&reader, "/docs/a").await, Ok(OLD.into()));
    let attributes = FileAttributes::default();
    for refused in [
        status(reader.open("/docs/a", FileOpening::writing()).await),
        status(reader.make_directory("/docs/d", attributes).await),
        status(reader.rename("/docs/a", "/docs/b", true).await),
        status(reader.copy_file("/docs/a", "/docs/b").await),
        status(reader.make_link("/docs/l", "a").await),
        status(reader.remove_file("/docs/a").await),
        status(reader.set_attributes("/docs/a", attributes).await),
        // Buckets are made by an operation.
        status(node.tree.make_directory("/", attributes).await),
    ] {
        assert_eq!(refused, 3);
    }
    let bucket = node.tree.make_directory("/more", attributes).await;
    assert_eq!(status(bucket), 2);
    // A bucket that the client does not see is as one that is not there.
    for path in ["/logs/a", "/none/a"] {
        assert_eq!(status(reader.stat(path).await), 2, "{path}");
        assert_eq!(status(reader.list(path, None, 9).await), 2, "{path}");
        assert_eq!(status(reader.open(path, FileOpening::writing()).await), 2);
        assert_eq!(status(reader.rename("/docs/a", path, false).await), 2);
    }
    let writer = node.client("bob", &["fs:write:docs"]);
    assert_eq!(names(&writer, "/").await, ["docs"]);
    assert!(writer.stat("/docs").await.is_ok());
    assert_eq!(status(content(&writer, "/docs/a").await), 3);
    let both = FileOpening {
        read: true,
        write: true,
        ..FileOpening::default()
    };
    // It would show the content of before.
    assert_eq!(status(writer.open("/docs/a", both).await), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_ends_open_files() {
    let node = TreeNode::new().await;
    let client = node.client("ada", &["fs:read:docs", "fs:write:docs"]);
    let reading = client.open("/docs/a", FileOpening::reading()).await;
    let writing = client.open("/docs/a", FileOpening::writing()).await;
    let (reading, writing) = (reading.expect("allowed"), writing.expect("allowed"));
    let written = writing.write_at(0, Bytes::from_static(b"new")).await;
    written.expect("allowed");
    client.set_requester(requester("ada", &["fs:read:logs"]));
    assert_eq!(status(reading.read_at(0, 1).await), 2);
    let more = writing.write_at(3, Bytes::from_static(b"er")).await;
    assert_eq!(status(more), 2);
    assert_eq!(status(writing.close().await), 2);
    assert_eq!(content(&node.tree, "/docs/a").await, Ok(OLD.into()));
    let lease = node.service.lease().await.expect("a store");
    assert_eq!(lease.sessions().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_and_quotas_bind_it() {
    let node = TreeNode::new().await;
    let lease = node.service.lease().await.expect("a store");
    let limited = lease.write(|tx| {
        let bucket = tx.bucket_by_name(&"docs".parse()?)?;
        let main = tx.branch_by_name(bucket.id, &BranchName::main())?;
        let settings = BucketSettings {
            quota_bytes: Some(Some(100)),
            ..BucketSettings::default()
        };
        tx.set_bucket(bucket.id, &settings, "root")?;
        let path = "/locked".parse()?;
        let time = Duration::from_secs(600);
        tx.lock_entry(
            &NewLock::exclusive(main.id, path, "eve", LockDepth::Infinity, time),
            &[],
        )
    });
    limited.await.expect("allowed");
    let locked = node.tree.open("/docs/locked", FileOpening::writing()).await;
    let error = locked.expect_err("it is locked");
    assert_eq!(error.sftp_status(), 4);
    assert!(error.to_string().contains("locked"), "{error}");
    let file = node.tree.open("/docs/b", FileOpening::writing()).await;
    let file = file.expect("allowed");
    let written = file.write_at(0, Bytes::from(vec![0; 101])).await;
    let error = written.expect_err("the bucket has no room");
    assert!(error.to_string().starts_with("quota exceeded"), "{error}");
    let space = node.tree.space("/docs").await.expect("a bucket");
    assert_eq!((space.total_bytes, space.free_bytes <= 100), (100, true));
    let disk = node.tree.space("/").await.expect("a disk");
    assert!(disk.total_bytes > 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_in_the_path_and_only_heads_take_changes() {
    let node = TreeNode::new().await;
    let lease = node.service.lease().await.expect("a store");
    let made = lease.write(|tx| {
        let bucket = tx.bucket_by_name(&"docs".parse()?)?;
        let main = tx.branch_by_name(bucket.id, &BranchName::main())?;
        tx.create_snapshot(&"monday".parse()?, main.id, None, "root")
    });
    let seq = made.await.expect("a snapshot").seq;
    node.write("/docs/a", b"newer").await;
    let tree = &node.tree;
    assert_eq!(names(tree, "/docs/.snap").await, ["monday"]);
    assert_eq!(names(tree, "/docs/.snap/monday").await, ["a"]);
    for path in ["/docs/.snap/monday/a".to_owned(), format!("/docs#{seq}/a")] {
        assert_eq!(content(tree, &path).await, Ok(OLD.into()), "{path}");
        let refused = tree.open(&path, FileOpening::writing()).await;
        assert_eq!(status(refused), 3, "{path}");
        assert_eq!(status(tree.remove_file(&path).await), 3, "{path}");
    }
    assert_eq!(content(tree, "/docs/a").await, Ok("newer".into()));
    // A former version can be copied to the present one.
    let copied = tree.copy_file("/docs/.snap/monday/a", "/docs/again").await;
    copied.expect("allowed");
    assert_eq!(content(tree, "/docs/again").await, Ok(OLD.into()));
    for path in ["/docs@none/a", "/docs/.snap/none/a"] {
        assert_eq!(status(tree.stat(path).await), 2, "{path}");
    }
    assert_eq!(status(tree.stat("/docs/../a").await), 4);
    assert_eq!(
        status(
            tree.make_directory("/docs/.snap", FileAttributes::default())
                .await
        ),
        3
    );
    let moved = tree.rename("/docs/a", "/docs@draft/a", false).await;
    assert_eq!(status(moved), 8);
}

/// A path with `..` or NUL, a name of 300 bytes, 65 names: SFTP's status of a failure, from every call.
#[tokio::test(flavor = "multi_thread")]
async fn paths_that_break_a_rule_are_refused_and_make_nothing() {
    let node = TreeNode::new().await;
    let tree = &node.tree;
    let attributes = FileAttributes::default();
    for path in [
        "/docs/new/../b".to_owned(),
        "/docs/new/a\0b".to_owned(),
        format!("/docs/new/{}", "a".repeat(300)),
        format!("/docs/new{}", "/a".repeat(64)),
    ] {
        let path = path.as_str();
        for refused in [
            status(tree.stat(path).await),
            status(tree.list(path, None, 9).await),
            status(tree.read_link(path).await),
            status(tree.space(path).await),
            status(tree.open(path, FileOpening::reading()).await),
            status(tree.open(path, FileOpening::writing()).await),
            status(tree.make_directory(path, attributes).await),
            status(tree.remove_file(path).await),
            status(tree.remove_directory(path).await),
            status(tree.rename("/docs/a", path, true).await),
            status(tree.rename(path, "/docs/b", true).await),
            status(tree.copy_file("/docs/a", path).await),
            status(tree.copy_file(path, "/docs/b").await),
            status(tree.make_link(path, "a").await),
            status(tree.set_attributes(path, attributes).await),
        ] {
            assert_eq!(refused, 4, "{path:.60}");
        }
    }
    // Neither the entry nor the directories on the way to it.
    assert_eq!(names(tree, "/docs").await, ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_of_an_open_file_come_with_its_content() {
    let node = TreeNode::new().await;
    let tree = &node.tree;
    let opening = FileOpening {
        append: true,
        create: true,
        attributes: FileAttributes {
            mode: Some(0o100_640),
            ..FileAttributes::default()
        },
        ..FileOpening::default()
    };
    let file = tree.open("/docs/b", opening).await.expect("allowed");
    for part in [&b"one "[..], b"two "] {
        // An append goes behind the end, whatever its offset is.
        file.write_at(0, Bytes::from_static(part))
            .await
            .expect("allowed");
    }
    let times = FileAttributes {
        mtime_ns: Some(7_000_000_000),
        ..FileAttributes::default()
    };
    tree.set_attributes("/docs/b", times)
        .await
        .expect("its own");
    file.sync().await.expect("a disk");
    let (open, named) = (file.stat().await, tree.stat("/docs/b").await);
    assert_eq!(open, named);
    file.close().await.expect("allowed");
    let stat = tree.stat("/docs/b").await.expect("a file");
    assert_eq!(
        (stat.size, stat.mode, stat.mtime_ns),
        (8, 0o640, 7_000_000_000)
    );
    assert!(stat.hash.is_some());
    assert_eq!(content(tree, "/docs/b").await, Ok("one two ".into()));
    let longer = FileAttributes {
        size: Some(10),
        ..times
    };
    tree.set_attributes("/docs/b", longer)
        .await
        .expect("allowed");
    assert_eq!(content(tree, "/docs/b").await, Ok("one two \0\0".into()));
    let stat = tree.stat("/docs/b").await.expect("a file");
    assert_eq!((stat.mode, stat.mtime_ns), (0o640, 7_000_000_000));

    tree.make_link("/docs/link", "b").await.expect("allowed");
    assert_eq!(tree.read_link("/docs/link").await.as_deref(), Ok("b"));
    assert_eq!(status(tree.read_link("/docs/b").await), 4);
    let link = tree.stat("/docs/link").await.expect("a link");
    assert_eq!((link.kind, link.size), (FileKind::Symlink, 1));
    assert_eq!(status(content(tree, "/docs/link").await), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_being_made_is_taken() {
    let node = TreeNode::new().await;
    let tree = &node.tree;
    let exclusive = FileOpening {
        exclusive: true,
        ..FileOpening::writing()
    };
    let first = tree.open("/docs/b", exclusive).await.expect("a new name");
    assert_eq!(status(tree.open("/docs/b", exclusive).await), 4);
    assert_eq!(status(tree.rename("/docs/b", "/docs/c", false).await), 4);
    // Another client makes it first.
    let other = node.client("ada", &["fs:write:docs"]);
    let second = other.open("/docs/b", exclusive).await.expect("a new name");
    second.close().await.expect("the first one");
    assert_eq!(status(first.close().await), 4);
    assert_eq!(content(tree, "/docs/b").await, Ok(Bytes::new()));
    let nowhere = tree.open("/docs/none/b", FileOpening::writing()).await;
    assert_eq!(status(nowhere), 2);
}
