//! Marks the library as one that is never unmapped.
//!
//! Waiter threads and the core's background threads run this library's code. Were the module
//! purged, `dlclose` would take that code away under them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
