defmodule Snakepit.SharedMemory.Config.Machine do
  @moduledoc false
  # Whether what a configuration asks for is to be had: on this machine, and in this version. The
  # core would find most of it out with each call; here a mistake is named once, and by its key.

  alias Snakepit.SharedMemory.{Config, Error, Native, Options, SessionSource}

  # The only value of a key that does what it says, and what the others wait for.
  @not_yet [
    security_level:
      {:standard, "encrypted values (:high) and signed ones (:maximum) are not there yet"},
    encryption_enabled: {false, "the encryption of values is not there yet"},
    audit_access: {false, "the audit of accesses is not there yet"},
    secure_cleanup: {false, "overwriting memory before it is given back is not there yet"}
  ]

  @spec check(Config.t(), atom()) :: :ok | {:error, Error.t()}
  def check(config, operation) do
    with :ok <- check_available(config, operation),
         :ok <- check_namespace(config, operation),
         :ok <- check_dir(config, operation),
         :ok <- check_session_source(config, operation) do
      check_huge_pages(config, operation)
    end
  end

  defp check_available(config, operation) do
    Enum.find_value(@not_yet, :ok, fn {key, {only, reason}} ->
      value = Map.fetch!(config, key)
      if value != only, do: {:error, not_yet(key, value, only, reason, operation)}
    end)
  end

  defp not_yet(key, value, only, reason, operation) do
    unsupported(
      "option #{inspect(key)} cannot be #{inspect(value)}: #{reason}",
      "leave #{inspect(key)} at #{inspect(only)}",
      operation
    )
  end

  defp check_namespace(%{namespace: namespace}, operation) do
    if namespace =~ ~r/\A[A-Za-z0-9-][A-Za-z0-9.-]{0,31}\z/ do
      :ok
    else
      expected = "1 to 32 letters, digits, dots or hyphens, without a leading dot"
      {:error, Options.invalid("option :namespace", expected, namespace, operation)}
    end
  end

  defp check_dir(%{enabled: false}, _operation), do: :ok

  defp check_dir(%{dir: dir}, operation) do
    if Path.type(dir) == :absolute and File.dir?(dir) do
      :ok
    else
      expected = "the absolute path of a directory that exists"
      {:error, Options.invalid("option :dir", expected, dir, operation)}
    end
  end

  defp check_session_source(%{enabled: false}, _operation), do: :ok

  defp check_session_source(%{session_source: source}, operation) do
    expected =
      with {:module, _} <- Code.ensure_loaded(source),
           [_ | _] = missing <- missing(source) do
        "a module with " <> Enum.map_join(missing, " and ", fn {f, n} -> "#{f}/#{n}" end)
      else
        [] -> nil
        {:error, _why} -> "a module that can be loaded"
      end

    if expected,
      do: {:error, Options.invalid("option :session_source", expected, source, operation)},
      else: :ok
  end

  defp missing(source) do
    for {name, arity} <- Enum.sort(SessionSource.behaviour_info(:callbacks)),
        not function_exported?(source, name, arity),
        do: {name, arity}
  end

  defp check_huge_pages(%{enabled: true, platform_options: %{linux: linux}} = config, operation)
       when linux.use_hugepages do
    case Native.capabilities(config.dir) do
      {:ok, %{huge_pages_possible: true}} -> :ok
      {:ok, found} -> {:error, no_huge_pages(config.dir, found, operation)}
      {:error, failure} -> {:error, Error.from_native(failure, operation)}
    end
  end

  defp check_huge_pages(_config, _operation), do: :ok

  defp no_huge_pages(dir, found, operation) do
    unsupported(
      "option :platform_options, :linux, :use_hugepages cannot be true: in #{dir} a file gets no " <>
        "huge page (#{why_none(found)})",
      "remount it with huge pages (mount -o remount,huge=within_size #{dir}), free memory in " <>
        "larger pieces, or leave the option out",
      operation
    )
  end

  defp why_none(%{huge_page_size: 0}), do: "the kernel has none"
  defp why_none(%{shmem_enabled: "deny"}), do: "the kernel denies them, by shmem_enabled"

  defp why_none(%{huge_pages: nil}),
    do: "the mount has no huge= option, and the kernel gives none on request"

  defp why_none(%{huge_pages: option}),
    do: "the mount has huge=#{option}, but free memory may lie in pieces too small"

  defp unsupported(message, remedy, operation) do
    Error.new(:unsupported, message, operation: operation, remedy: remedy)
  end
end
