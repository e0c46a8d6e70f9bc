# Loads the demo's modules, each after those it uses.
for file <- ~w(json png npy table histogram source edges panel worker pipe
              picture ways round_trip live leftovers) do
  Code.require_file("#{file}.ex", __DIR__)
end
