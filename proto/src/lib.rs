//! Protobuf messages spoken between Vireo's processes.
