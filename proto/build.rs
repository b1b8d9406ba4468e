//! Compiles the .proto files to Rust, without protoc.

use std::error::Error;

const FILES: [&str; 3] = [
    "vireo/internal/v1/handoff.proto",
    "vireo/internal/v1/apply.proto",
    "vireo/internal/v1/observe.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    prost_build::Config::new().compile_fds(descriptors)?;
    Ok(())
}
