//! From Mesa's source to the objects and archives of one driver. This file is a part of the archive's name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ninja::NinjaLinkInputs;
use super::recipe::{DriverRecipe, DriverRecipes};
use super::{SealedDriver, archive_name, seal};
use crate::context::XtaskContext;
use crate::failure::{Result, TaskError};
use crate::scratch::ScratchFolder;
use crate::{cached, sources, steps};

/// Debian's Python has the modules that Mesa's generators import; another one in front of it may not.
const PYTHON: &str = "/usr/bin/python3";

/// Every function in a section of its own, so that the last link can leave out those that are never called.
const SECTIONS: &str = "['-ffunction-sections', '-fdata-sections']";

/// One build in a scratch folder, gone when dropped.
pub(super) struct DriverBuild<'a> {
    cx: &'a XtaskContext,
    recipes: &'a DriverRecipes,
    recipe: &'a DriverRecipe,
    /// Folder of the build tool's Python package.
    meson: PathBuf,
    scratch: ScratchFolder,
}

impl<'a> DriverBuild<'a> {
    pub(super) fn new(
        cx: &'a XtaskContext,
        recipes: &'a DriverRecipes,
        recipe: &'a DriverRecipe,
        meson: PathBuf,
    ) -> Result<Self> {
        let scratch = ScratchFolder::new(cx.cache(), &format!("vulkan-{}-build-", recipe.name))?;
        Ok(Self {
            cx,
            recipes,
            recipe,
            meson,
            scratch,
        })
    }

    /// Builds, seals and puts the archive into its place in the cache.
    pub(super) fn run(
        &self,
        mesa: &Path,
        patches: &[(String, String)],
        sealed: &SealedDriver,
    ) -> Result<()> {
        self.unpack(mesa, "source")?;
        for (name, text) in patches {
            self.patch(name, text)?;
        }
        self.write_native()?;
        let libdrm = if self.recipe.libdrm {
            Some(self.build_libdrm()?)
        } else {
            None
        };
        self.configure(libdrm.as_deref())?;
        let parts = self.parts()?;
        let mut ninja = self.ninja("build");
        ninja.args(parts.goals());
        self.step(&mut ninja, "compile")?;
        self.publish(&parts, libdrm.as_deref(), sealed)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn step(&self, command: &mut Command, what: &str) -> Result<()> {
        let name = &self.recipe.name;
        let title = format!("Vulkan driver {name}: {what}");
        self.cx.run(
            command,
            &title,
            &format!("vulkan-{name}-{}", what.replace(' ', "-")),
        )
    }

    fn unpack(&self, archive: &Path, to: &str) -> Result<()> {
        let folder = self.folder(to);
        fs::create_dir(&folder).map_err(TaskError::io(format!("make {}", folder.display())))?;
        let mut tar = steps::program("tar");
        tar.args(["--no-same-owner", "--strip-components=1", "-xJf"])
            .arg(archive)
            .arg("-C")
            .arg(folder);
        self.step(&mut tar, &format!("unpack {to}"))
    }

    fn patch(&self, name: &str, text: &str) -> Result<()> {
        let file = self.folder(&format!("{name}.patch"));
        fs::write(&file, text).map_err(TaskError::io(format!("write {}", file.display())))?;
        let mut git = steps::program("git");
        // The cache may lie in another repository of the user's; the patch is not for that one.
        git.args(["apply", "--whitespace=nowarn"])
            .arg(&file)
            .current_dir(self.folder("source"))
            .env("GIT_CEILING_DIRECTORIES", self.scratch.path());
        self.step(&mut git, &format!("patch {name}"))
    }

    fn write_native(&self) -> Result<()> {
        let mut text = format!("[binaries]\npython3 = '{PYTHON}'\n");
        if self.recipe.llvm {
            text += &format!("llvm-config = '{}'\n", self.recipes.llvm.config);
        }
        text += &format!("[built-in options]\nc_args = {SECTIONS}\ncpp_args = {SECTIONS}\n");
        fs::write(self.folder("native.ini"), text).map_err(TaskError::io("write meson's settings"))
    }

    fn meson(&self, build: &str, source: &str) -> Command {
        let mut meson = steps::program(PYTHON);
        meson
            .arg(self.meson.join("bin/meson"))
            .arg("setup")
            .arg(self.folder(build))
            .arg(self.folder(source))
            .arg("--native-file")
            .arg(self.folder("native.ini"));
        self.prepare(&mut meson);
        meson
    }

    fn ninja(&self, build: &str) -> Command {
        let mut ninja = steps::program("nice");
        // Cargo, beside which this runs, has the longer way to go.
        ninja.args(["-n", "5", "ninja"]);
        ninja.args(["-j", &self.cx.jobs().to_string(), "-C"]);
        ninja.arg(self.folder(build));
        self.prepare(&mut ninja);
        ninja
    }

    /// What meson and the programs that it finds need.
    fn prepare(&self, command: &mut Command) {
        command
            .env("PYTHONPATH", &self.meson)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // Mesa would put the name of a commit of ours into its version.
            .env("GIT_CEILING_DIRECTORIES", self.scratch.path());
    }

    fn configure(&self, libdrm: Option<&Path>) -> Result<()> {
        let mut meson = self.meson("build", "source");
        meson
            .args(&self.recipes.mesa.options)
            .args(&self.recipe.options);
        if let Some(libdrm) = libdrm {
            meson.env("PKG_CONFIG_PATH", libdrm.join("lib/pkgconfig"));
        }
        self.step(&mut meson, "configure")
    }

    /// Static and without what is particular to one maker's devices; the folder it is installed in.
    fn build_libdrm(&self) -> Result<PathBuf> {
        let source = sources::obtain(self.cx, "libdrm")?;
        self.unpack(&source.path, "libdrm")?;
        let installed = self.folder("libdrm-installed");
        let mut meson = self.meson("libdrm-build", "libdrm");
        meson
            .args(["--buildtype=release", "--auto-features=disabled"])
            .args(["-Ddefault_library=static", "-Dtests=false", "--libdir=lib"])
            .arg("--prefix")
            .arg(&installed);
        self.step(&mut meson, "configure libdrm")?;
        let mut ninja = self.ninja("libdrm-build");
        self.step(ninja.arg("install"), "compile libdrm")?;
        Ok(installed)
    }

    fn parts(&self) -> Result<NinjaLinkInputs> {
        let file = self.folder("build").join("build.ninja");
        let text =
            fs::read_to_string(&file).map_err(TaskError::io(format!("read {}", file.display())))?;
        NinjaLinkInputs::parse(&self.recipe.target, &text).ok_or_else(|| {
            TaskError::Arguments(format!(
                "Mesa does not build {} with these options; see compute/driver/drivers.toml",
                self.recipe.target
            ))
        })
    }

    fn publish(
        &self,
        parts: &NinjaLinkInputs,
        libdrm: Option<&Path>,
        sealed: &SealedDriver,
    ) -> Result<()> {
        let ready = self.folder("ready");
        fs::create_dir(&ready).map_err(TaskError::io("make a folder for the driver"))?;
        let inputs = seal::DriverInputs {
            driver: &self.recipe.name,
            folder: &self.folder("build"),
            parts,
            llvm: self.recipe.llvm.then_some(&self.recipes.llvm),
            libdrm: libdrm.map(|folder| folder.join("lib/libdrm.a")),
        };
        let archive = ready.join(archive_name(&self.recipe.name));
        seal::seal(self.scratch.path(), &inputs, &archive, |command, what| {
            self.step(command, what)
        })?;
        cached::settle(&ready, &sealed.folder)
            .map_err(TaskError::io("put the driver into the cache"))
    }
}
