//! Builds each form in turn from the inputs, and shares what several forms need.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

use crate::command_line::cmdline;
use crate::disk::{self, DISK_BYTES, DiskContent, UKI_BYTES_MAX};
use crate::error::ImageError;
use crate::form::{ImageForm, OutputRole};
use crate::grub::NOTICE_FILE;
use crate::ids::BuildIds;
use crate::inputs::{ImageInputs, InputContents, invalid};
use crate::iso::IsoMedium;
use crate::manifest::{Manifest, ManifestBoot};
use crate::out::{OutDir, at};
use crate::tree::RootFiles;
use crate::virtual_disk::vhdx::VhdxIds;
use crate::virtual_disk::vmdk::VmdkKind;
use crate::virtual_disk::{RawDisk, aws, gce, ova, qcow2, vhd, vhdx, vmdk};
use crate::{
    container_images, cpio, erofs, examples, iso, kernel, linuxkit, lz4, network_boot, sbom, tree,
    uki, zstandard,
};

/// Google's import takes disks of whole GiB.
const GCE_DISK_BYTES: u64 = 1 << 30;

/// A step that `build` reports before it takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildProgress {
    /// The step, such as `compressing the initramfs`.
    pub doing: String,
    /// How many forms are complete.
    pub done: usize,
    /// How many forms were requested.
    pub total: usize,
}

/// Builds `forms` into `out_dir` and writes `manifest.json` there, last.
///
/// Files of the same name are replaced, others stay. A form named twice is built once.
///
/// # Errors
/// An input is missing or unusable, a tool is missing, a limit is exceeded or the folder cannot be
/// written. [`ImageError::exit_code`] distinguishes them. No manifest is left then.
pub fn build(
    inputs: &ImageInputs,
    forms: &[ImageForm],
    out_dir: &Path,
    progress: &mut dyn FnMut(BuildProgress),
) -> Result<Manifest, ImageError> {
    build_forms(inputs, forms, out_dir, None, progress)
}

/// What signs an EFI program for Secure Boot: returns it with its signature, or says why it cannot be signed.
pub type SignEfiProgram<'a> = dyn Fn(&[u8]) -> Result<Vec<u8>, String> + 'a;

/// Like [`build`], with the loader and the unified kernel image signed for Secure Boot in every form.
///
/// `sign` is called once for each program, because all forms and the manifest must have the same bytes, and some keys
/// sign with a random number.
///
/// # Errors
/// Those of [`build`]. `sign` refuses a program, or none of the forms has one.
pub fn build_signed(
    inputs: &ImageInputs,
    forms: &[ImageForm],
    out_dir: &Path,
    sign: &SignEfiProgram<'_>,
    progress: &mut dyn FnMut(BuildProgress),
) -> Result<Manifest, ImageError> {
    if !forms.iter().any(|form| form.holds_efi_program()) {
        let names: Vec<_> = forms.iter().map(|form| form.name()).collect();
        return Err(ImageError::Argument {
            what: "list of forms",
            value: names.join(" "),
            why: "none of them has an EFI program to sign; add one, such as uki or raw, or leave the key out",
        });
    }
    build_forms(inputs, forms, out_dir, Some(sign), progress)
}

fn build_forms(
    inputs: &ImageInputs,
    forms: &[ImageForm],
    out_dir: &Path,
    sign: Option<&SignEfiProgram<'_>>,
    progress: &mut dyn FnMut(BuildProgress),
) -> Result<Manifest, ImageError> {
    // The forms are built in one order and each once, whatever the request: the manifest must not
    // depend on that.
    let forms: Vec<ImageForm> = ImageForm::ALL
        .into_iter()
        .filter(|form| forms.contains(form))
        .collect();
    let mut job = ImageBuild::new(inputs, &forms, out_dir, sign, progress)?;
    let mut out = OutDir::open(out_dir)?;
    for (done, form) in forms.iter().enumerate() {
        job.done = done;
        job.form(*form, &mut out)?;
        job.examples(*form, &mut out)?;
    }
    job.sbom(&forms, &mut out)?;
    out.finish(job.manifest(&forms))
}

struct ImageBuild<'a> {
    inputs: &'a ImageInputs,
    /// Where the outputs go, and files without a name meanwhile.
    folder: &'a Path,
    loaded: InputContents,
    /// Signs the unified kernel image. The loader in `loaded` is signed already.
    sign: Option<&'a SignEfiProgram<'a>>,
    ids: BuildIds,
    uki: Option<Rc<[u8]>>,
    initrd: Option<Rc<[u8]>>,
    disk: Option<Rc<RawDisk>>,
    stream: Option<Rc<[u8]>>,
    progress: &'a mut dyn FnMut(BuildProgress),
    done: usize,
    total: usize,
}

impl<'a> ImageBuild<'a> {
    fn new(
        inputs: &'a ImageInputs,
        forms: &[ImageForm],
        folder: &'a Path,
        sign: Option<&'a SignEfiProgram<'a>>,
        progress: &'a mut dyn FnMut(BuildProgress),
    ) -> Result<Self, ImageError> {
        progress(BuildProgress {
            doing: "reading the inputs".into(),
            done: 0,
            total: forms.len(),
        });
        let mut loaded = InputContents::read(inputs, forms)?;
        if let Some(sign) = sign {
            loaded.sign_loader(inputs.loader.as_deref(), sign)?;
        }
        let ids = BuildIds::new(&inputs.version, &inputs.git);
        let total = forms.len();
        Ok(Self {
            inputs,
            folder,
            loaded,
            sign,
            ids,
            uki: None,
            initrd: None,
            disk: None,
            stream: None,
            progress,
            done: 0,
            total,
        })
    }

    fn form(&mut self, form: ImageForm, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        if form.holds_grub() {
            let notice = &self.loaded.grub(form)?.notice;
            out.bytes(form, OutputRole::Notice, NOTICE_FILE, notice.as_bytes())?;
        }
        match form {
            ImageForm::Direct => self.direct(out),
            ImageForm::Erofs => self.erofs(out),
            ImageForm::Linuxkit => self.linuxkit(out),
            ImageForm::Raw => self.raw(out),
            ImageForm::Iso => self.iso(out),
            ImageForm::Uki => self.uki(out),
            ImageForm::Qcow2 => self.container(form, out, "qcow2", qcow2::write),
            ImageForm::Vmdk => self.vmdk(out),
            ImageForm::Ova => self.ova(out),
            ImageForm::Vhd => {
                let id = self.ids.uuid("vhd");
                self.container(form, out, "vhd", |file, disk| vhd::write(file, disk, id))
            }
            ImageForm::Vhdx => {
                let ids = VhdxIds {
                    file: self.ids.uuid("vhdx-file"),
                    data: self.ids.uuid("vhdx-data"),
                    disk: self.ids.uuid("vhdx-disk"),
                };
                self.container(form, out, "vhdx", |file, disk| vhdx::write(file, disk, ids))
            }
            ImageForm::Gce => self.gce(out),
            ImageForm::Aws => self.aws(out),
            ImageForm::Oci => self.oci(out),
            ImageForm::Containerdisk => self.container_disk(out),
            ImageForm::Kernelboot => self.kernel_boot(out),
            ImageForm::Pxe => self.pxe(out),
        }
    }

    /// Writes the descriptions of machines that start from the files of `form`.
    fn examples(&self, form: ImageForm, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let line = cmdline(form, &self.inputs.cmdline);
        for example in examples::of_form(form, &self.inputs.version, &line) {
            let text = example.text.as_bytes();
            out.bytes(form, OutputRole::Example, &example.file, text)?;
        }
        Ok(())
    }

    /// Writes the bill of materials. Each form lists it, because owners pass on single forms.
    fn sbom(&self, forms: &[ImageForm], out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let ImageInputs {
            version,
            git,
            provenance,
            ..
        } = self.inputs;
        let loaded = &self.loaded;
        let components = provenance.components(&loaded.files, &loaded.kernel_release);
        if components.is_empty() {
            return Ok(());
        }
        let seconds = provenance.seconds;
        let document = sbom::document(&components, seconds, version, git, &self.ids);
        let name = sbom::file_name(version);
        for form in forms {
            out.bytes(*form, OutputRole::Sbom, &name, &document)?;
        }
        Ok(())
    }

    fn direct(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        self.kernels(ImageForm::Direct, out)?;
        self.write_initrd(ImageForm::Direct, out)
    }

    fn write_initrd(&mut self, form: ImageForm, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let initrd = self.initrd();
        out.bytes(form, OutputRole::Initrd, "initrd.cpio.lz4", &initrd)
    }

    /// The initramfs for a loader that takes kernel and initramfs. Three forms have it.
    fn initrd(&mut self) -> Rc<[u8]> {
        if let Some(made) = &self.initrd {
            return Rc::clone(made);
        }
        self.say("compressing the initramfs");
        // A hypervisor that loads a kernel apart from it has a quick disk, so the time to unpack it
        // counts.
        let made: Rc<[u8]> = lz4::legacy_frame(&self.archive()).into();
        self.initrd = Some(Rc::clone(&made));
        made
    }

    fn oci(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        self.say("laying out the container image");
        let layout = container_images::service(&self.inputs.version, &self.loaded.binary);
        let name = format!("alknet_{}.oci.tar", self.inputs.version);
        out.bytes(ImageForm::Oci, OutputRole::OciImage, &name, &layout)
    }

    fn container_disk(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let disk = self.disk(ImageForm::Containerdisk)?;
        self.say("laying out the container image");
        let qcow2 = self.content_of(|file| qcow2::write(file, &disk))?;
        let layout = container_images::container_disk(&self.inputs.version, &qcow2);
        let name = format!("alknet_{}-containerdisk.oci.tar", self.inputs.version);
        let role = OutputRole::OciImage;
        out.bytes(ImageForm::Containerdisk, role, &name, &layout)
    }

    fn kernel_boot(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let initrd = self.initrd();
        self.say("laying out the container image");
        let version = &self.inputs.version;
        let layout = container_images::kernel_boot(version, &self.loaded.kernel, &initrd);
        let name = format!("alknet_{version}-kernelboot.oci.tar");
        out.bytes(ImageForm::Kernelboot, OutputRole::OciImage, &name, &layout)
    }

    fn pxe(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let form = ImageForm::Pxe;
        self.say("copying the kernel");
        out.bytes(form, OutputRole::Kernel, "bzImage", &self.loaded.kernel)?;
        self.write_initrd(form, out)?;
        let line = cmdline(form, &self.inputs.cmdline);
        let script = network_boot::ipxe(&line);
        let role = OutputRole::IpxeScript;
        out.bytes(form, role, "boot.ipxe", script.as_bytes())?;
        let config = network_boot::pxelinux(&line);
        let role = OutputRole::PxelinuxConfig;
        out.bytes(form, role, "pxelinux.cfg", config.as_bytes())
    }

    fn erofs(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        self.kernels(ImageForm::Erofs, out)?;
        self.say("writing the erofs root drive");
        let version = self.version_line();
        let tree = tree::root(self.root_files(&version));
        let uuid = self.ids.uuid("erofs");
        out.by_tool(ImageForm::Erofs, OutputRole::Root, "root.erofs", |path| {
            erofs::write(&tree, uuid, path)
        })
    }

    fn uki(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let uki = self.make_uki(ImageForm::Uki)?;
        // The name by which systemd-boot sorts versions, for owners who use it.
        out.bytes(
            ImageForm::Uki,
            OutputRole::Uki,
            &format!("alknet_{}.efi", self.inputs.version),
            &uki,
        )
    }

    fn raw(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let uki = self.make_uki(ImageForm::Raw)?;
        self.say("writing the disk");
        let content = self.disk_content(ImageForm::Raw, &uki)?;
        let name = format!("alknet_{}.raw", self.inputs.version);
        out.with(ImageForm::Raw, OutputRole::Disk, &name, |file| {
            disk::write(file.try_clone()?, DISK_BYTES, &content, &self.ids).map(drop)
        })
    }

    fn iso(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let uki = self.make_uki(ImageForm::Iso)?;
        let disk = self.disk(ImageForm::Iso)?;
        self.say("writing the medium");
        let grub = self.loaded.grub(ImageForm::Iso)?;
        let medium = IsoMedium {
            uki: &uki,
            core: &grub.cd_core,
            hybrid_sector: &grub.hybrid_sector,
            notice: &grub.notice,
            ids: &self.ids,
            disk: &disk,
            version: &self.inputs.version,
        };
        let name = format!("alknet_{}.iso", self.inputs.version);
        out.by_tool(ImageForm::Iso, OutputRole::Disk, &name, |path| {
            iso::write(&medium, path)
        })
    }

    /// The raw disk that the containers hold, in a file without a name.
    fn disk(&mut self, form: ImageForm) -> Result<Rc<RawDisk>, ImageError> {
        if let Some(made) = &self.disk {
            return Ok(Rc::clone(made));
        }
        let made = Rc::new(self.disk_of(form, DISK_BYTES)?);
        self.disk = Some(Rc::clone(&made));
        Ok(made)
    }

    fn disk_of(&mut self, form: ImageForm, bytes: u64) -> Result<RawDisk, ImageError> {
        let uki = self.make_uki(form)?;
        let content = self.disk_content(form, &uki)?;
        let written = tempfile::tempfile_in(self.folder).and_then(|file| {
            let file = disk::write(file, bytes, &content, &self.ids)?;
            RawDisk::new(file)
        });
        written.map_err(at(self.folder))
    }

    /// Writes the disk as `alknet_<version>.<extension>`.
    fn container(
        &mut self,
        form: ImageForm,
        out: &mut OutDir<'_>,
        extension: &str,
        write: impl FnOnce(&File, &RawDisk) -> io::Result<()>,
    ) -> Result<(), ImageError> {
        let disk = self.disk(form)?;
        self.say("writing the disk");
        let name = format!("alknet_{}.{extension}", self.inputs.version);
        out.with(form, OutputRole::Disk, &name, |file| write(file, &disk))
    }

    fn vmdk(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let name = format!("alknet_{}.vmdk", self.inputs.version);
        let id = self.content_id();
        self.container(ImageForm::Vmdk, out, "vmdk", |file, disk| {
            vmdk::write(file, disk, VmdkKind::MonolithicSparse, &name, id)
        })
    }

    /// The compressed disk. Two forms have it, and compressing takes seconds.
    fn stream(&mut self, form: ImageForm) -> Result<Rc<[u8]>, ImageError> {
        if let Some(made) = &self.stream {
            return Ok(Rc::clone(made));
        }
        let disk = self.disk(form)?;
        self.say("compressing the disk");
        let name = format!("alknet_{}.vmdk", self.inputs.version);
        let id = self.content_id();
        let made =
            self.content_of(|file| vmdk::write(file, &disk, VmdkKind::StreamOptimized, &name, id))?;
        let made: Rc<[u8]> = made.into();
        self.stream = Some(Rc::clone(&made));
        Ok(made)
    }

    /// The bytes of a container that another file holds.
    fn content_of(
        &self,
        write: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<Vec<u8>, ImageError> {
        let read = tempfile::tempfile_in(self.folder).and_then(|mut file| {
            write(&file)?;
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            Ok(content)
        });
        read.map_err(at(self.folder))
    }

    /// VMware's number for the content of a disk.
    fn content_id(&self) -> u32 {
        self.ids.uuid("vmdk").as_fields().0
    }

    fn ova(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let vmdk = self.stream(ImageForm::Ova)?;
        let name = format!("alknet_{}.ova", self.inputs.version);
        let archive = ova::archive(&self.inputs.version, &vmdk, DISK_BYTES);
        out.bytes(ImageForm::Ova, OutputRole::Archive, &name, &archive)
    }

    fn gce(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let disk = self.disk_of(ImageForm::Gce, GCE_DISK_BYTES)?;
        self.say("compressing the disk");
        let name = format!("alknet_{}-gce.tar.gz", self.inputs.version);
        out.with(ImageForm::Gce, OutputRole::Archive, &name, |file| {
            gce::write(file, &disk)
        })
    }

    fn aws(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        let vmdk = self.stream(ImageForm::Aws)?;
        let version = &self.inputs.version;
        let disk = format!("alknet_{version}-aws.vmdk");
        out.bytes(ImageForm::Aws, OutputRole::Disk, &disk, &vmdk)?;
        let name = format!("alknet_{version}-aws.json");
        let parameters = aws::registration(version);
        out.bytes(
            ImageForm::Aws,
            OutputRole::Registration,
            &name,
            parameters.as_bytes(),
        )
    }

    fn linuxkit(&mut self, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        self.say("laying out the LinuxKit packages");
        let series = kernel::series(&self.loaded.kernel_release);
        let version = &self.inputs.version;
        let kernel = linuxkit::kernel_package(&series, &self.loaded.kernel);
        out.bytes(
            ImageForm::Linuxkit,
            OutputRole::OciKernel,
            "alknet-kernel.oci.tar",
            &kernel,
        )?;
        let appliance = linuxkit::appliance_package(version, &self.loaded.binary);
        out.bytes(
            ImageForm::Linuxkit,
            OutputRole::OciAppliance,
            "alknet-appliance.oci.tar",
            &appliance,
        )?;
        let yml = linuxkit::yml(&series, version, &self.inputs.cmdline);
        out.bytes(
            ImageForm::Linuxkit,
            OutputRole::LinuxkitYml,
            "linuxkit.yml",
            yml.as_bytes(),
        )
    }

    fn kernels(&mut self, form: ImageForm, out: &mut OutDir<'_>) -> Result<(), ImageError> {
        self.say("copying the kernel");
        out.bytes(form, OutputRole::Kernel, "bzImage", &self.loaded.kernel)?;
        // Only some hypervisors boot the ELF kernel (PVH). Without it the others still work.
        match &self.loaded.vmlinux {
            Some(vmlinux) => out.bytes(form, OutputRole::Vmlinux, "vmlinux", vmlinux),
            None => Ok(()),
        }
    }

    fn archive(&self) -> Vec<u8> {
        cpio::archive(&tree::root(self.root_files(&self.version_line())))
    }

    fn version_line(&self) -> String {
        format!("{}\n", self.inputs.version)
    }

    fn root_files<'f>(&'f self, version: &'f str) -> RootFiles<'f> {
        RootFiles {
            binary: &self.loaded.binary,
            version: version.as_bytes(),
            update_root: self.loaded.update_root.as_deref(),
        }
    }

    /// What is on the disk of `form`, whose program is `uki`.
    fn disk_content<'f>(
        &'f self,
        form: ImageForm,
        uki: &'f [u8],
    ) -> Result<DiskContent<'f>, ImageError> {
        Ok(DiskContent {
            uki,
            loader: self.loaded.loader(form)?,
            grub: &self.loaded.grub(form)?.loader,
        })
    }

    fn make_uki(&mut self, form: ImageForm) -> Result<Rc<[u8]>, ImageError> {
        // Two forms have the same program, and compressing takes seconds.
        if let Some(made) = &self.uki {
            return Ok(Rc::clone(made));
        }
        self.say("compressing the initramfs");
        // Firmware reads it from flash, or it comes over a network, so its size counts.
        let initrd = zstandard::frame(&self.archive());
        // The check precedes the joining, because it is cheap.
        check_size(form, self.loaded.kernel.len() + initrd.len())?;
        self.say("joining the EFI program");
        let cmdline = cmdline(ImageForm::Uki, &self.inputs.cmdline);
        let sections = uki::sections(
            uki::os_release(&self.inputs.version, &self.inputs.git),
            &cmdline,
            &self.loaded.kernel_release,
            &self.loaded.kernel,
            &initrd,
        );
        let stub = self.loaded.stub(form)?;
        let unusable = |why| invalid("EFI stub", &stub.path, why);
        let unsigned = uki::unified(&stub.bytes, &cmdline, sections).map_err(unusable)?;
        let made: Rc<[u8]> = match self.sign {
            Some(sign) => sign(&unsigned).map_err(unusable)?.into(),
            None => unsigned.into(),
        };
        check_size(form, made.len())?;
        self.uki = Some(Rc::clone(&made));
        Ok(made)
    }

    fn manifest(self, forms: &[ImageForm]) -> Manifest {
        let boot = |form: &ImageForm| ManifestBoot {
            form: *form,
            cmdline: cmdline(*form, &self.inputs.cmdline),
        };
        let mut sources = self.inputs.provenance.sources.clone();
        // The forms that programs of the system write.
        if forms.contains(&ImageForm::Erofs) {
            sources.extend(erofs::tool());
        }
        if forms.contains(&ImageForm::Iso) {
            sources.extend(iso::tool());
        }
        Manifest {
            version: self.inputs.version.clone(),
            git: self.inputs.git.clone(),
            arch: "x86_64".into(),
            kernel_release: self.loaded.kernel_release,
            kernel_config_sha256: self.loaded.kernel_config_sha256,
            inputs: self.loaded.files,
            sources,
            disk: None,
            boot: forms.iter().map(boot).collect(),
            outputs: Vec::new(),
        }
    }

    fn say(&mut self, doing: &str) {
        let doing = doing.to_owned();
        (self.progress)(BuildProgress {
            doing,
            done: self.done,
            total: self.total,
        });
    }
}

fn check_size(form: ImageForm, bytes: usize) -> Result<(), ImageError> {
    let bytes = bytes as u64;
    if bytes > UKI_BYTES_MAX {
        return Err(ImageError::TooLarge {
            form,
            bytes,
            limit: UKI_BYTES_MAX,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_efi_program_fits_three_times() {
        check_size(ImageForm::Uki, UKI_BYTES_MAX as usize).expect("exactly fits");
        let error =
            check_size(ImageForm::Uki, UKI_BYTES_MAX as usize + 1).expect_err("one byte too many");
        assert_eq!(error.exit_code(), 5);
    }
}
