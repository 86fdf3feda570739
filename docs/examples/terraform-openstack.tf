# alknet as a server of an OpenStack cloud, from alknet_VERSION.qcow2 of the form qcow2. Terraform reads every file of a
# folder: copy this one to a folder of its own.

terraform {
  required_providers {
    openstack = {
      source  = "terraform-provider-openstack/openstack"
      version = "~> 3.0"
    }
  }
}

variable "image" {
  description = "Path of alknet_VERSION.qcow2, with the document of the node on its boot partition"
  type        = string
}

variable "flavor" {
  description = "Size of the server: 512 MiB of memory and 1 GiB of disk at least"
  type        = string
}

variable "network" {
  description = "Name of the network"
  type        = string
}

resource "openstack_images_image_v2" "alknet" {
  name             = "alknet"
  local_file_path  = var.image
  container_format = "bare"
  disk_format      = "qcow2"
  min_disk_gb      = 1
  min_ram_mb       = 512

  properties = {
    architecture     = "x86_64"
    hw_firmware_type = "uefi"
    hw_machine_type  = "q35"
    hw_disk_bus      = "virtio"
    hw_vif_model     = "virtio"
    os_type          = "linux"
  }
}

resource "openstack_networking_secgroup_v2" "alknet" {
  name        = "alknet"
  description = "The one port of the node"
}

resource "openstack_networking_secgroup_rule_v2" "alknet" {
  for_each          = toset(["tcp", "udp"])
  direction         = "ingress"
  ethertype         = "IPv4"
  protocol          = each.key
  port_range_min    = 443
  port_range_max    = 443
  security_group_id = openstack_networking_secgroup_v2.alknet.id
}

resource "openstack_compute_instance_v2" "alknet" {
  name            = "edge-1"
  image_id        = openstack_images_image_v2.alknet.id
  flavor_name     = var.flavor
  security_groups = [openstack_networking_secgroup_v2.alknet.name]

  network {
    name = var.network
  }
}

output "address" {
  value = openstack_compute_instance_v2.alknet.access_ip_v4
}
