"""Link modules: carry datagrams between neighbours."""
