//! Compiles the .proto files of the API to Rust, without protoc, and keeps their descriptors for reflection.

use prost::Message;
use std::error::Error;
use std::path::PathBuf;

const FILES: [&str; 14] = [
    "opi_api/storage/v1/backend_aio.proto",
    "opi_api/storage/v1/backend_malloc.proto",
    "opi_api/storage/v1/backend_null.proto",
    "opi_api/storage/v1/frontend_nvme.proto",
    "vireo/v1/controller.proto",
    "vireo/v1/event.proto",
    "vireo/v1/fault.proto",
    "vireo/v1/namespace.proto",
    "vireo/v1/stats.proto",
    "vireo/v1/subsystem.proto",
    "vireo/v1/target.proto",
    "vireo/v1/trace.proto",
    "vireo/v1/volume.proto",
    "vireo/v1/worker.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../opi_api");
    println!("cargo:rerun-if-changed=../vireo/v1");
    let descriptors = protox::compile(FILES, [".."])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
