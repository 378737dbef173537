"""What tests of Roomtone and of its plugins stand on: a fake speech service, a fake room, the conformance kit."""
