# What a guide links to outside the site is named by its path.
s|\[`*\([^]`]*\)`*](\.\./\1)|`\1`|g
s|\[\([^]]*\)](\.\./\([^)]*\))|\1 (`\2`)|g
