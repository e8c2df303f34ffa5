//! Writes the library folders into the binaries, so that people need no `LD_LIBRARY_PATH`, and builds
//! what calls C++.
fn main() {
    const GRAPH: &str = "src/adapters/embedder/torch/cuda/graph.cpp";
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed={GRAPH}");
    if std::env::var_os("CARGO_FEATURE_TORCH").is_some() {
        cc::Build::new().cpp(true).std("c++17").file(GRAPH).compile("sextant_graph");
    }
    let Ok(libtorch) = std::env::var("LIBTORCH") else { return };
    // libtorch's own libraries name the folders of the CUDA run time relative to themselves.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
}
