//! Compiles the gateway's interface, in Rust alone: a fresh machine needs no `protoc`; and what has to run before Rust's
//! runtime does.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/cli/closed_streams.c");
    cc::Build::new()
        .file("src/cli/closed_streams.c")
        // Nothing refers to it, so the linker would leave it out of the program.
        .link_lib_modifier("+whole-archive")
        .compile("acervo_closed_streams");
    #[cfg(feature = "grpc")]
    grpc::compile();
}

#[cfg(feature = "grpc")]
mod grpc {
    use std::path::Path;

    const FOLDER: &str = "proto";
    /// The interface of the specification, what is served beside it, and etcd's: the name of each
    /// description, and its files.
    const INTERFACES: [(&str, &[&str]); 3] = [
        ("project", &["project"]),
        ("acervo", &["acervo"]),
        ("etcd", &["etcd/rpc", "etcd/lock", "etcd/election"]),
    ];

    pub fn compile() {
        println!("cargo::rerun-if-changed={FOLDER}");
        INTERFACES.iter().for_each(|(name, files)| compile_one(name, files));
    }

    fn compile_one(name: &str, files: &[&str]) {
        let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR for build scripts");
        let mut compiler = protox::Compiler::new([FOLDER]).expect("the folder can be read");
        // With the comments, which become the documentation of the code.
        compiler.include_source_info(true).include_imports(true);
        for file in files {
            if let Err(error) = compiler.open_file(format!("{file}.proto")) {
                panic!("{FOLDER}/{file}.proto is not sound: {error}");
            }
        }
        // What reflection serves, and what the tests compare with the specification.
        let description = Path::new(&out).join(format!("{name}.bin"));
        std::fs::write(description, compiler.encode_file_descriptor_set())
            .expect("OUT_DIR can be written");
        tonic_prost_build::configure()
            // Keys and values are passed on without being copied.
            .bytes(".")
            .compile_fds(compiler.file_descriptor_set())
            .expect("code can be made of a sound interface");
    }
}
