"""What is published beside the ImageNet presets: values with their sources (``values``), results (``results``), and the page (``table``)."""
