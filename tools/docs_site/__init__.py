"""The documentation site: pages made from code, tutorials that are run, and checks that hold it true."""
