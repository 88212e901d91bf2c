"""Plans a project: reads the images and the machine, times the candidate networks, and chooses parameters that fit a number of hours."""
