{{- define "sextant.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}-operator
{{- end }}

{{- define "sextant.fullname" -}}
{{- include "sextant.name" . | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "sextant.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "sextant.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "sextant.selector" -}}
app.kubernetes.io/name: sextant-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sextant.labels" -}}
{{ include "sextant.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

