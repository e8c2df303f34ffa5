//! Writes the library folders into the binaries, so that people need no `LD_LIBRARY_PATH`.
fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(libtorch) = std::env::var("LIBTORCH") else { return };
    // libtorch's own libraries name the folders of the CUDA run time relative to themselves.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
}
