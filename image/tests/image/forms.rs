//! Every form, checked by programs of other projects.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use alknet_image::{ImageError, ImageForm, Manifest, OutputRole, UKI_BYTES_MAX, build};
use serde_json::Value;
use tempfile::TempDir;

use crate::sbom;
use crate::support::{self, InputFolder, RELEASE, UPDATE_ROOT, output, run, text};

struct BuiltImage {
    source: InputFolder,
    out: TempDir,
    manifest: Manifest,
}

impl BuiltImage {
    fn new(forms: &[ImageForm]) -> Self {
        Self::from(InputFolder::new(), forms)
    }

    fn from(source: InputFolder, forms: &[ImageForm]) -> Self {
        let out = tempfile::tempdir().expect("a temporary folder");
        let manifest = source.build(forms, out.path());
        Self {
            source,
            out,
            manifest,
        }
    }

    fn path(&self, form: ImageForm, role: OutputRole) -> PathBuf {
        self.manifest
            .path(self.out.path(), form, role)
            .expect("the form was built")
    }

    fn scratch(&self, name: &str) -> PathBuf {
        self.source.dir.path().join(name)
    }
}

#[test]
fn cpio_and_lz4_read_the_initramfs() {
    let built = BuiltImage::new(&[ImageForm::Direct]);
    let initrd = built.path(ImageForm::Direct, OutputRole::Initrd);
    run("lz4", &["-t", text(&initrd)]);
    let kind = run("file", &["-b", text(&initrd)]);
    assert!(kind.contains("LZ4 compressed data (v0.1-v0.9)"), "{kind}");
    let archive = built.scratch("archive");
    run("lz4", &["-d", "-q", text(&initrd), text(&archive)]);
    let listing = run(
        "sh",
        &["-c", &format!("cpio -itv --quiet < '{}'", text(&archive))],
    );
    let has = |line: &str| listing.lines().any(|l| same_words(l, line));
    assert!(
        has("crw------- 1 root root 5, 1 Jan 1 1970 dev/console"),
        "{listing}"
    );
    assert!(
        has("crw-rw-rw- 1 root root 1, 3 Jan 1 1970 dev/null"),
        "{listing}"
    );
    assert!(has("drwxrwxrwt 2 root root 0 Jan 1 1970 tmp"), "{listing}");
    assert!(
        listing.contains("etc/resolv.conf -> /run/resolv.conf"),
        "{listing}"
    );
    assert!(
        has("-r--r--r-- 1 root root 6 Jan 1 1970 version"),
        "{listing}"
    );
    assert_eq!(listing.lines().count(), 13, "{listing}");
    let text_of = |name| {
        let unpack = format!("cpio -i --to-stdout --quiet {name} < '{}'", text(&archive));
        run("sh", &["-c", &unpack])
    };
    assert_eq!(text_of("version"), "0.1.0\n");
    assert_eq!(text_of("update-root.json").as_bytes(), UPDATE_ROOT);
}

#[test]
fn the_packed_binary_is_static_stripped_and_still_runs() {
    let built = BuiltImage::new(&[ImageForm::Direct]);
    let archive = built.scratch("archive");
    run(
        "lz4",
        &[
            "-d",
            "-q",
            text(&built.path(ImageForm::Direct, OutputRole::Initrd)),
            text(&archive),
        ],
    );
    let root = built.scratch("root");
    fs::create_dir(&root).expect("creatable");
    let unpack = format!("cd '{}' && cpio -i --quiet init < ../archive", text(&root));
    run("sh", &["-c", &unpack]);
    let init = root.join("init");
    let kind = run("file", &["-b", text(&init)]);
    assert!(kind.contains("static"), "{kind}");
    assert!(!kind.contains("not stripped"), "{kind}");
    let packed = fs::metadata(&init).expect("unpacked");
    let whole = fs::metadata(&built.source.inputs.binary).expect("written");
    assert!(packed.len() < whole.len());
    assert_eq!(packed.mode() & 0o777, 0o755);
    // It is this test program. Listing its tests shows that the kernel loads it.
    assert!(run(text(&init), &["--list"]).contains("still_runs"));
}

#[test]
fn fsck_reads_the_erofs_root() {
    let built = BuiltImage::new(&[ImageForm::Erofs]);
    let root = built.path(ImageForm::Erofs, OutputRole::Root);
    run("fsck.erofs", &[text(&root)]);
    let facts = run("dump.erofs", &["-s", text(&root)]);
    // No file in it has to be unpacked: pages are what the drive has.
    assert!(
        !facts.contains("lz4") && !facts.contains("cluster"),
        "{facts}"
    );
    let init = run("dump.erofs", &["--path=/init", text(&root)]);
    assert!(
        init.contains("rwxr-xr-x") || init.contains("0755"),
        "{init}"
    );
    assert!(
        built
            .manifest
            .cmdline(ImageForm::Erofs)
            .expect("built")
            .ends_with("ro init=/init")
    );
    assert_eq!(
        built.path(ImageForm::Erofs, OutputRole::Kernel),
        built.out.path().join("bzImage")
    );
}

#[test]
fn objdump_reads_the_efi_program() {
    let built = BuiltImage::new(&[ImageForm::Direct, ImageForm::Uki]);
    let uki = built.path(ImageForm::Uki, OutputRole::Uki);
    assert!(uki.ends_with("alknet_0.1.0.efi"));
    let kind = run("file", &["-b", text(&uki)]);
    assert!(
        kind.contains("PE32+ executable (EFI application) x86-64"),
        "{kind}"
    );
    let headers = run("objdump", &["-h", text(&uki)]);
    for name in [
        ".osrel", ".cmdline", ".uname", ".linux", ".initrd", ".grubcfg",
    ] {
        assert!(
            headers.lines().any(|line| line.contains(name)),
            "{name}: {headers}"
        );
    }
    for (section, expected) in [
        (".linux", support::kernel()),
        (
            ".cmdline",
            b"lockdown=confidentiality init_on_free=1 console=tty0 console=ttyS0 quiet panic=10\0"
                .to_vec(),
        ),
        (".uname", RELEASE.as_bytes().to_vec()),
    ] {
        assert!(
            section_of(&uki, section).starts_with(&expected),
            "{section}"
        );
    }
    // The same archive as for other loaders, in a smaller form, and something may follow it.
    let initrd = section_of(&uki, ".initrd");
    let archive = built.scratch("archive");
    let direct = built.path(ImageForm::Direct, OutputRole::Initrd);
    run("lz4", &["-d", "-q", text(&direct), text(&archive)]);
    let decoder = zstd::Decoder::new(&initrd[..]).expect("Zstandard");
    let mut unpacked = Vec::new();
    let read = decoder.single_frame().read_to_end(&mut unpacked);
    read.expect("a whole frame");
    assert!(unpacked == fs::read(&archive).expect("unpacked"));
}

/// A section of an EFI program, with the zeros that pad it.
fn section_of(uki: &Path, section: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let copy = folder.path().join("section");
    let dump = format!("{section}={}", text(&copy));
    let dump = [
        "-O",
        "binary",
        "--dump-section",
        &dump,
        text(uki),
        "/dev/null",
    ];
    run("objcopy", &dump);
    fs::read(&copy).expect("objcopy wrote the section")
}

#[test]
fn sgdisk_and_fsck_read_the_disk() {
    let built = BuiltImage::new(&[ImageForm::Uki, ImageForm::Raw]);
    let disk = built.path(ImageForm::Raw, OutputRole::Disk);
    let facts = fs::metadata(&disk).expect("written");
    assert_eq!(facts.len(), alknet_image::DISK_BYTES);
    let uki_bytes = fs::metadata(built.path(ImageForm::Uki, OutputRole::Uki))
        .expect("written")
        .len();
    assert!(
        facts.blocks() * 512 < uki_bytes + (4 << 20),
        "the file is not sparse"
    );
    let verdict = run("sgdisk", &["-v", text(&disk)]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    let table = run("sgdisk", &["-p", text(&disk)]);
    for row in ["1 34 2047", "2 2048 526335", "3 526336 557022"] {
        assert!(
            table.lines().any(|l| words(l).starts_with(row)),
            "{row}: {table}"
        );
    }
    let first = run("sgdisk", &["-i", "2", text(&disk)]);
    assert!(
        first.contains("C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
        "{first}"
    );
    assert!(first.contains("'alk-esp'"), "{first}");
    let esp = built.scratch("esp");
    cut_system_partition(&disk, &esp);
    let said = run("fsck.vfat", &["-n", "-v", text(&esp)]);
    // Loader and program, their three folders, and the volume's label.
    assert!(said.contains(": 6 files, "), "{said}");
    assert!(
        !said.contains("Dirty") && !said.contains("differ"),
        "{said}"
    );
    assert!(
        run("file", &["-b", text(&esp)]).contains("FAT (32 bit)"),
        "{said}"
    );
    let loader = built.source.inputs.loader.clone().expect("it is set");
    let uki = built.path(ImageForm::Uki, OutputRole::Uki);
    for (file, expected) in [("BOOT/BOOTX64.EFI", loader), ("ALKNET/A.EFI", uki)] {
        let copy = built.scratch("copy");
        let place = format!("::/EFI/{file}");
        run("mcopy", &["-o", "-i", text(&esp), &place, text(&copy)]);
        let same = fs::read(&copy).expect("copied") == fs::read(&expected).expect("written");
        assert!(same, "{file} is not {}", expected.display());
    }
    // The other boot slot is empty until an update.
    let listed = run("mdir", &["-b", "-/", "-i", text(&esp), "::/"]);
    assert_eq!(
        listed.lines().filter(|line| line.ends_with(".EFI")).count(),
        2,
        "{listed}"
    );
}

/// Every output is named in the manifest, and sha256sum agrees with it.
fn names_every_output(built: &BuiltImage) {
    assert_eq!(
        Manifest::read(built.out.path()).expect("readable"),
        built.manifest
    );
    let mut names = vec!["manifest.json".to_owned()];
    for output in &built.manifest.outputs {
        let path = built.out.path().join(&output.file);
        assert_eq!(fs::metadata(&path).expect("written").len(), output.bytes);
        names.extend([output.file.clone(), format!("{}.sha256", output.file)]);
    }
    names.sort();
    names.dedup();
    assert_eq!(listing(built.out.path()), names);
    let check = format!(
        "cd '{}' && sha256sum --strict -c ./*.sha256",
        text(built.out.path())
    );
    run("sh", &["-c", &check]);
    assert_eq!(built.manifest.kernel_release, RELEASE);
    let config = built.manifest.kernel_config_sha256.as_deref();
    assert!(config.is_some_and(|hash| hash.len() == 64));
}

/// In the manifest as other programs read it.
#[test]
fn the_manifest_says_how_each_form_is_started() {
    let built = BuiltImage::from(sbom::inputs(), &ImageForm::ALL);
    let path = built.out.path().join(alknet_image::MANIFEST_FILE);
    let manifest = fs::read(path).expect("written");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let outputs = manifest["outputs"].as_array().expect("a list");
    let ways = |form: &str| -> BTreeSet<&str> {
        let of_form = outputs.iter().filter(|output| output["form"] == form);
        let ways = of_form.filter_map(|output| output["start"].as_array());
        ways.flatten().filter_map(Value::as_str).collect()
    };
    for form in ImageForm::ALL {
        let expected: &[&str] = match form {
            ImageForm::Direct | ImageForm::Erofs => &["linux", "pvh"],
            ImageForm::Uki => &["uefi"],
            ImageForm::Linuxkit => &["linuxkit"],
            ImageForm::Oci => &["container"],
            ImageForm::Kernelboot => &["linux"],
            ImageForm::Pxe => &["ipxe", "linux", "pxelinux"],
            _ => &["bios", "uefi"],
        };
        assert_eq!(
            ways(form.name()),
            expected.iter().copied().collect(),
            "{form}"
        );
    }
    for role in ["example", "notice", "sbom", "registration"] {
        let described = outputs.iter().filter(|output| output["role"] == role);
        let starts: Vec<_> = described.map(|output| output.get("start")).collect();
        assert!(!starts.is_empty(), "no {role}");
        assert!(starts.iter().all(Option::is_none), "{role}: {starts:?}");
    }
}

#[test]
fn two_builds_from_different_places_are_the_same_bytes_and_name_every_output() {
    let first = BuiltImage::new(&ImageForm::ALL);
    // Another folder, on another file system if there is one. The manifests hold every hash.
    let source = InputFolder::new();
    let elsewhere = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let out = elsewhere.expect("a temporary folder");
    let out = out.path().join("deeper");
    let manifest = source.build(&ImageForm::ALL, &out);
    assert_eq!(manifest, first.manifest);
    assert_eq!(listing(&out), listing(first.out.path()));
    names_every_output(&first);
    let read = |dir: &Path| fs::read(dir.join(alknet_image::MANIFEST_FILE)).expect("written");
    assert_eq!(read(&out), read(first.out.path()));
}

#[test]
fn another_commit_is_another_image() {
    let first = BuiltImage::new(&[ImageForm::Erofs, ImageForm::Uki]);
    let mut source = InputFolder::new();
    source.inputs.git = "fedcba9".into();
    let out = tempfile::tempdir().expect("a temporary folder");
    let manifest = source.build(&[ImageForm::Erofs, ImageForm::Uki], out.path());
    for role in [OutputRole::Root, OutputRole::Uki] {
        let hash = |manifest: &Manifest| {
            let found = manifest.outputs.iter().find(|output| output.role == role);
            found.expect("built").sha256.clone()
        };
        assert_ne!(hash(&manifest), hash(&first.manifest), "{role:?}");
    }
}

#[test]
fn forms_are_built_once_and_in_order_with_progress() {
    let source = InputFolder::new();
    let out = tempfile::tempdir().expect("a temporary folder");
    let mut steps = Vec::new();
    let forms = [ImageForm::Linuxkit, ImageForm::Direct, ImageForm::Direct];
    let manifest = build(&source.inputs, &forms, out.path(), &mut |step| {
        steps.push(step)
    });
    let manifest = manifest.expect("builds");
    let built: Vec<_> = manifest.boot.iter().map(|boot| boot.form).collect();
    assert_eq!(built, [ImageForm::Direct, ImageForm::Linuxkit]);
    assert!(
        steps
            .iter()
            .all(|step| step.total == 2 && step.done < 2 && !step.doing.is_empty())
    );
    assert!(steps.is_sorted_by_key(|step| step.done));
}

#[test]
fn bad_inputs_end_in_their_exit_codes_and_leave_no_manifest() {
    let mut source = InputFolder::new();
    let out = tempfile::tempdir().expect("a temporary folder");
    let good = source.inputs.clone();
    let mut refusal = |change: &dyn Fn(&mut InputFolder)| -> ImageError {
        source.inputs = good.clone();
        change(&mut source);
        let result = build(&source.inputs, &ImageForm::ALL, out.path(), &mut |_| {});
        assert!(Manifest::read(out.path()).is_err());
        result.expect_err("must be refused")
    };
    assert_eq!(refusal(&|s| s.inputs.stub = None).exit_code(), 2);
    assert_eq!(refusal(&|s| s.inputs.grub = None).exit_code(), 2);
    assert_eq!(refusal(&|s| s.inputs.loader = None).exit_code(), 2);
    for change in [
        &|s: &mut InputFolder| s.inputs.loader = s.inputs.vmlinux.clone(),
        &|s: &mut InputFolder| s.inputs.update_root = s.inputs.vmlinux.clone(),
    ] as [&dyn Fn(&mut InputFolder); 2]
    {
        assert_eq!(refusal(change).exit_code(), 3);
    }
    let long = refusal(&|s| {
        let core = s.dir.path().join("long");
        fs::write(&core, vec![1; 1970 * 512]).expect("writable");
        s.inputs.grub.as_mut().expect("it is set").core = core;
    });
    assert_eq!(long.exit_code(), 3);
    assert!(long.to_string().contains("1969 fit"), "{long}");
    assert_eq!(
        refusal(&|s| s.inputs.kernel = "/nonexistent".into()).exit_code(),
        3
    );
    assert_eq!(
        refusal(&|s| s.inputs.kernel = s.inputs.binary.clone()).exit_code(),
        3
    );
    assert_eq!(
        refusal(&|s| s.inputs.stub = s.inputs.vmlinux.clone()).exit_code(),
        3
    );
    let shell = refusal(&|s| s.inputs.binary = "/bin/sh".into());
    assert_eq!(shell.exit_code(), 3);
    assert!(shell.to_string().contains("interpreter /lib64/"), "{shell}");
    let huge = refusal(&|s| {
        let mut kernel = support::kernel();
        kernel.resize(usize::try_from(UKI_BYTES_MAX).expect("64-bit"), 0);
        s.inputs.kernel = s.dir.path().join("huge");
        fs::write(&s.inputs.kernel, kernel).expect("writable");
    });
    assert_eq!(huge.exit_code(), 5);
}

#[test]
fn a_failed_form_takes_the_previous_manifest_along() {
    let mut source = InputFolder::new();
    let out = tempfile::tempdir().expect("a temporary folder");
    source.build(&[ImageForm::Direct], out.path());
    source.inputs.stub = source.inputs.vmlinux.clone();
    let result = build(&source.inputs, &[ImageForm::Uki], out.path(), &mut |_| {});
    assert!(matches!(
        result,
        Err(ImageError::InputInvalid {
            what: "EFI stub",
            ..
        })
    ));
    assert!(Manifest::read(out.path()).is_err());
    assert!(
        output("ls", &["-A", text(out.path())])
            .stdout
            .starts_with(b"bzImage")
    );
}

fn cut_system_partition(disk: &Path, esp: &Path) {
    let from = format!("if={}", text(disk));
    let to = format!("of={}", text(esp));
    run(
        "dd",
        &[
            &from,
            &to,
            "bs=1M",
            "skip=1",
            "count=256",
            "conv=sparse",
            "status=none",
        ],
    );
}

fn listing(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("readable");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry
            .expect("readable")
            .file_name()
            .into_string()
            .expect("our names are ASCII")
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

fn words(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn same_words(line: &str, expected: &str) -> bool {
    words(line) == expected
}
