# alknet as a virtual machine of libvirt, from alknet_VERSION.qcow2 of the form qcow2, and the seed that
# `alknet provision` makes. Terraform reads every file of a folder: copy this one to a folder of its own.

terraform {
  required_providers {
    libvirt = {
      source = "dmacvicar/libvirt"
      # The arguments of version 0.9 differ.
      version = "~> 0.8.3"
    }
  }
}

variable "image" {
  description = "Path of alknet_VERSION.qcow2"
  type        = string
}

variable "seed" {
  description = "Path of seed.iso"
  type        = string
}

variable "disk_bytes" {
  description = "Size of the disk, 402 MiB at least; the machine makes its data partition as large"
  type        = number
  default     = 8589934592
}

provider "libvirt" {
  uri = "qemu:///system"
}

resource "libvirt_volume" "image" {
  name   = "alknet-image.qcow2"
  source = var.image
  format = "qcow2"
}

resource "libvirt_volume" "disk" {
  name           = "alknet.qcow2"
  base_volume_id = libvirt_volume.image.id
  size           = var.disk_bytes
  format         = "qcow2"
}

resource "libvirt_volume" "seed" {
  name   = "alknet-seed.iso"
  source = var.seed
  format = "raw"
}

resource "libvirt_domain" "alknet" {
  name     = "alknet"
  machine  = "q35"
  memory   = 512
  vcpu     = 1
  firmware = "/usr/share/OVMF/OVMF_CODE_4M.fd"

  nvram {
    file     = "/var/lib/libvirt/qemu/nvram/alknet_VARS.fd"
    template = "/usr/share/OVMF/OVMF_VARS_4M.fd"
  }

  disk {
    volume_id = libvirt_volume.disk.id
  }

  disk {
    volume_id = libvirt_volume.seed.id
  }

  network_interface {
    network_name   = "default"
    wait_for_lease = true
  }

  console {
    type        = "pty"
    target_type = "serial"
    target_port = "0"
  }

  tpm {
    backend_type    = "emulator"
    backend_version = "2.0"
  }
}

output "addresses" {
  value = libvirt_domain.alknet.network_interface[0].addresses
}
