"""The pure core: values in, values out. Nothing here touches the operating system."""
